"""StoredTokens: a store read through a memory map, any rows in any order."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from glot.errors import StoreError
from glot.states.store.layout import DTYPES, PLAN, TOKENS, Manifest, StoreKey
from glot.types import TokenBatch


class StoredTokens:
    """A TokenSource over a complete store. Its pickle, for worker processes, holds the path and not the memory map.

    Examples:
        >>> StoredTokens(folder, Manifest.read(folder)).gather(np.array([3, 0]))
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.hidden_size = manifest.hidden_size
        self._dtype = DTYPES[str(manifest.key["store_dtype"])]
        with np.load(folder / PLAN) as plan:
            order, lengths = plan["order"], plan["lengths"]
        self._lengths, self._starts = lengths, np.empty_like(lengths)
        self._starts[order] = np.cumsum(lengths[order]) - lengths[order]
        self._tokens: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.manifest.num_sentences

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
        place = range(len(self))[row]  # raises IndexError beyond the end, which ends an iteration
        return self.gather(np.array([place])).tokens

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tokens": None}

    @property
    def tokens(self) -> torch.Tensor:
        """(N, d) in the store's precision, memory-mapped on each process's first use."""
        if self._tokens is None:
            size = self.manifest.num_tokens * self.hidden_size
            read_ahead(self.folder / TOKENS)
            mapped = torch.from_file(str(self.folder / TOKENS), shared=False, size=size, dtype=self._dtype)
            self._tokens = mapped.view(-1, self.hidden_size)
        return self._tokens

    def gather(self, rows: np.ndarray) -> TokenBatch:
        """The states of `rows (B,)` in that order: float32 (N, d) on the CPU."""
        lengths = self._lengths[rows]  # numpy is faster than torch on arrays this small
        ptr = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=ptr[1:])
        positions = np.arange(ptr[-1]) + np.repeat(self._starts[rows] - ptr[:-1], lengths)
        return TokenBatch(self.tokens.index_select(0, torch.from_numpy(positions)).float(), torch.from_numpy(ptr))


READ_AT_ONCE = 8 << 20


def read_ahead(path: Path) -> threading.Thread | None:
    """Read a file sequentially in the background, so that the page cache holds it before training reads it in random order.

    Sequential reads are much faster than random ones (benchmarks/README.md). Nothing is read, and None is returned, where the available
    memory is less than twice the file's size.
    """
    if 2 * path.stat().st_size > available_memory():
        return None

    def stream() -> None:
        """Read into one buffer; the page cache keeps the data."""
        buffer = bytearray(READ_AT_ONCE)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    thread = threading.Thread(target=stream, daemon=True)
    thread.start()
    return thread


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
        raise StoreError(f"store {folder}: its manifest is damaged ({error}); build it anew with --override_precompute=1") from error
    if manifest is None:
        raise StoreError(f"store {folder}: there is no complete store; give a folder under --store_dir")
    return _check_files(folder, manifest)


def open_store(root: Path, key: StoreKey) -> StoredTokens | None:
    """The store of `key`, or None where there is no complete one.

    Raises:
        StoreError: the folder holds another key, a damaged manifest, or other files or sizes than its manifest says.
    """
    folder = key.folder(root)
    again = "build it anew with --override_precompute=1"
    try:
        manifest = Manifest.read(folder)
    except (ValueError, TypeError) as error:
        raise StoreError(f"store {folder}: its manifest is damaged ({error}); {again}") from error
    if manifest is None:
        return None
    different = key.differences(manifest.key)
    if different:
        raise StoreError(f"store {folder}: was made with another {', '.join(different)}; {again}")
    return _check_files(folder, manifest)


def _check_files(folder: Path, manifest: Manifest) -> StoredTokens:
    """The store, where its files are those that the manifest promises."""
    again = "build it anew with --override_precompute=1"
    if not (folder / PLAN).is_file():
        raise StoreError(f"store {folder}: {PLAN} is missing; {again}")
    path = folder / TOKENS
    size = path.stat().st_size if path.is_file() else 0
    if size != manifest.size_bytes:
        raise StoreError(f"store {folder}: holds {size} bytes, its manifest says {manifest.size_bytes}; {again}")
    return StoredTokens(folder, manifest)
