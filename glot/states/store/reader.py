"""StoredTokens: a store read text by text, any rows in any order."""

import io
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from glot.errors import StoreError, library_door, reason
from glot.states.store.checksums import BackgroundCheck, Part, checksum, damaged_parts
from glot.states.store.layout import DTYPES, PLAN, TOKENS, Manifest, StoreKey
from glot.types import TokenBatch

ANEW = "build it anew with --override_precompute=1, or remove it with glot store rm"


class StoredTokens:
    """A TokenSource over a complete store. Its pickle, for worker processes, holds the path and not the open file.

    Rows are read and not mapped into memory: a mapped store would count as this process's memory, all of it after one epoch.

    Examples:
        >>> StoredTokens(folder, Manifest.read(folder)).gather(np.array([3, 0]))
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.hidden_size = manifest.hidden_size
        self._dtype = DTYPES[str(manifest.key["store_dtype"])]
        with np.load(folder / PLAN) as plan:
            order, lengths = plan["order"], plan["lengths"]
        self._lengths, self._order, self._starts = lengths, order, np.empty_like(lengths)
        self._starts[order] = np.cumsum(lengths[order]) - lengths[order]
        self._file: io.FileIO | None = None
        self._check: BackgroundCheck | None = None
        self._checks, self._is_checked = manifest.chunk_checksums is not None, False

    def __len__(self) -> int:
        return self.manifest.num_sentences

    @property
    def lengths(self) -> np.ndarray:
        """(S,) int64, tokens of each text."""
        return self._lengths

    @property
    def facts(self) -> dict[str, Any]:
        """Facts measured on the backbone that made the store; empty for stores of older versions."""
        return dict(self.manifest.backbone or {})

    @property
    def store(self) -> dict[str, Any]:
        """Path and size of the store."""
        made = self.manifest
        return {"path": str(self.folder), "bytes": made.size_bytes, "sentences": made.num_sentences, "tokens": made.num_tokens}

    @property
    def trained(self) -> list[nn.Parameter]:
        """Empty: with stored states no backbone is trained."""
        return []

    def save(self, folder: Path) -> None:
        """Write nothing, because no backbone was trained."""

    def __getitem__(self, row: int) -> torch.Tensor:
        """The states of one text, by its place in order of first appearance: float32 (n, d)."""
        place = range(len(self))[operator.index(row)]  # raises IndexError beyond the end, which ends an iteration
        return self.gather(np.array([place])).tokens

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None, "_check": None, "_checks": False}  # a worker's rows are checked by its parent

    def _open(self) -> int:
        """The file of states, opened on each process's first use, and checked in the background from then on."""
        if self._file is None:
            if self._checks and not self._is_checked and 2 * self.manifest.size_bytes <= available_memory():
                self._check = BackgroundCheck(self.folder / TOKENS, self.parts)  # which also reads ahead
            self._file = (self.folder / TOKENS).open("rb", buffering=0)
        return self._file.fileno()

    def close(self) -> None:
        """Give the file of states back to the system; the next read opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def parts(self) -> list[Part]:
        """The chunks of `tokens.bin` with their checksums; one part without a checksum of a store of an older version."""
        width = self.hidden_size * self._dtype.itemsize
        if self.manifest.chunk_checksums is None:
            return [Part(0, self.manifest.size_bytes, "")]
        ends = np.concatenate([[0], np.cumsum(self._lengths[self._order])]) * width
        return [Part(int(ends[first]), int(ends[last]), known) for first, last, known in self.manifest.chunk_checksums]

    def check(self) -> None:
        """Compare every byte with its checksum, once per process; called before a result is written.

        Raises:
            StoreError: a chunk is not what was written; its texts are named.
        """
        if self.manifest.chunk_checksums is None or self._is_checked:
            return
        path = self.folder / TOKENS
        try:
            found = self._check.result() if self._check is not None else damaged_parts(path, self.parts)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read ({error.strerror}); {ANEW}") from error
        if found:
            first, last, _ = self.manifest.chunk_checksums[found[0]]
            more = f" and {len(found) - 1} more chunks" if len(found) > 1 else ""
            raise StoreError(f"{path}: is damaged in texts {first} to {last - 1} of its order{more}; {ANEW}")
        self._is_checked = True

    def gather(self, rows: np.ndarray) -> TokenBatch:
        """The states of `rows (B,)` in that order: float32 (N, d) on the CPU."""
        batch = self.read(rows)
        return batch.with_tokens(batch.tokens.float())

    def read(self, rows: np.ndarray) -> TokenBatch:
        """`gather` in the store's own precision."""
        lengths = self._lengths[rows]  # numpy is faster than torch on arrays this small
        ptr = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=ptr[1:])
        states = torch.empty(int(ptr[-1]), self.hidden_size, dtype=self._dtype)
        into, file, width = states.view(torch.uint8).numpy().reshape(-1).data, self._open(), self.hidden_size * self._dtype.itemsize
        ends = (ptr * width).tolist()
        for place, start in enumerate((self._starts[rows] * width).tolist()):
            part = into[ends[place] : ends[place + 1]]
            if os.preadv(file, [part], start) != len(part):
                raise StoreError(f"{self.folder / TOKENS}: ends before text {int(rows[place])}; {ANEW}")
        return TokenBatch(states, torch.from_numpy(ptr))


def available_memory() -> int:
    """Bytes available without swapping, by /proc/meminfo; 0 on systems other than Linux."""
    account = Path("/proc/meminfo")
    lines = account.read_text().splitlines() if account.is_file() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), 0)


def open_store_folder(folder: Path) -> StoredTokens:
    """A complete store by its folder, whatever made it.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    try:
        manifest = Manifest.read(folder)
    except (ValueError, TypeError) as error:
        raise StoreError(f"store {folder}: its manifest is damaged ({error}); {ANEW}") from error
    if manifest is None:
        raise StoreError(f"store {folder}: there is no complete store; give a folder under --store_dir")
    return _check_files(folder, manifest)


def open_store(root: Path, key: StoreKey) -> StoredTokens | None:
    """The store of `key`, or None where there is no complete one.

    Raises:
        StoreError: the folder holds another key, a damaged manifest, or other files or sizes than its manifest says.
    """
    folder = key.folder(root)
    try:
        manifest = Manifest.read(folder)
    except (ValueError, TypeError) as error:
        raise StoreError(f"store {folder}: its manifest is damaged ({error}); {ANEW}") from error
    if manifest is None:
        return None
    different = key.differences(manifest.key)
    if different:
        raise StoreError(f"store {folder}: was made with another {', '.join(different)}; {ANEW}")
    return _check_files(folder, manifest)


def _check_files(folder: Path, manifest: Manifest) -> StoredTokens:
    """The store, where its files are those that the manifest promises."""
    if not (folder / PLAN).is_file():
        raise StoreError(f"store {folder}: {PLAN} is missing; {ANEW}")
    if manifest.plan_checksum is not None and checksum((folder / PLAN).read_bytes()) != manifest.plan_checksum:
        raise StoreError(f"store {folder}: {PLAN} is damaged; {ANEW}")
    path = folder / TOKENS
    size = path.stat().st_size if path.is_file() else 0
    if size != manifest.size_bytes:
        raise StoreError(f"store {folder}: holds {size} bytes, its manifest says {manifest.size_bytes}; {ANEW}")
    with library_door(StoreError, lambda error: f"store {folder}: {PLAN} is damaged ({reason(error)}); {ANEW}"):
        return StoredTokens(folder, manifest)
