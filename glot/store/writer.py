"""Write a store: plan, chunks (each finished one is remembered), manifest last."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from glot.errors import StoreError
from glot.progress import counter, say
from glot.store.layout import CHUNKS, DTYPES, KEY, LOCK, MANIFEST, PLAN, TOKENS, Manifest, StoreKey
from glot.types import TokenBatch

CHUNK_BYTES = 64 << 20
Encode = Callable[[np.ndarray], Iterable[TokenBatch]]
"""rows (n,) of one chunk -> their states in that order, some sentences at a time."""


@dataclass(frozen=True)
class StorePlan:
    """Where each sentence will stand, known from the token counts alone.

    Attributes:
        lengths: (S,) int64, tokens of each sentence, in the caller's order.
        hidden_size: d.
        dtype: a name of `DTYPES`.
    """

    lengths: np.ndarray
    hidden_size: int
    dtype: str

    @property
    def order(self) -> np.ndarray:
        """(S,): sentences from long to short: a batch pads little, and one that does not fit fails first. Ties keep their order."""
        return np.argsort(-self.lengths, kind="stable")

    @property
    def bytes_per_token(self) -> int:
        """D times the width of a number."""
        return self.hidden_size * DTYPES[self.dtype].itemsize

    @property
    def size_bytes(self) -> int:
        """Of `tokens.bin`."""
        return int(self.lengths.sum()) * self.bytes_per_token

    def chunks(self) -> list[tuple[int, int]]:
        """[first, last) positions of each chunk of at most about `CHUNK_BYTES`."""
        ends = np.cumsum(self.lengths[self.order]) * self.bytes_per_token
        chunk = (ends - 1) // CHUNK_BYTES
        starts = np.flatnonzero(np.diff(chunk, prepend=-1))
        return list(zip(starts.tolist(), [*starts[1:].tolist(), len(ends)], strict=True))


@dataclass(frozen=True)
class WriteOptions:
    """How a store is brought to completion.

    Attributes:
        resume: go on behind the chunks that an earlier process finished.
        rebuild: forget whatever is there, even a complete store.
        verbose: a line and a bar.
    """

    resume: bool = True
    rebuild: bool = False
    verbose: bool = False


def write_store(root: Path, key: StoreKey, plan: StorePlan, encode: Encode, versions: dict[str, str], options: WriteOptions) -> Path:
    """Make the store of `key` complete and return its folder.

    Raises:
        StoreError: not enough room on the disk, or a state that the store's precision cannot hold.
    """
    folder = key.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, options.verbose):
        if options.rebuild:
            _remove(folder)
        if (folder / MANIFEST).is_file():  # another process wrote it while this one waited
            return folder
        done = _finished_chunks(folder, plan) if options.resume else set()
        if done:
            say(f"store {folder}: {len(done)} of {len(plan.chunks())} chunks are there, going on", options.verbose)
        else:
            _remove(folder)
            _say_size(folder, plan, options.verbose)
            (folder / KEY).write_text(key.to_json())
            np.savez(folder / PLAN, order=plan.order, lengths=plan.lengths)
        _reserve(folder, plan)
        _write_chunks(folder, plan, encode, done, options.verbose)
        totals = len(plan.lengths), int(plan.lengths.sum()), plan.hidden_size, plan.size_bytes, len(plan.chunks())
        Manifest(json.loads(key.to_json()), *totals, versions).write(folder)
    return folder


def _remove(folder: Path) -> None:
    """Forget a store: the manifest goes first, so that it is never complete and half there. Who has it mapped keeps the old file."""
    for name in (MANIFEST, CHUNKS, PLAN, TOKENS, KEY):
        (folder / name).unlink(missing_ok=True)


def _write_chunks(folder: Path, plan: StorePlan, encode: Encode, done: set[int], verbose: bool) -> None:
    order, lengths = plan.order, plan.lengths
    starts = np.concatenate([[0], np.cumsum(lengths[order])])
    chunks = plan.chunks()
    _remember(folder, done, len(chunks))
    with (folder / TOKENS).open("r+b") as tokens, counter("encode", "token", int(lengths.sum()), verbose) as bar:
        for index, (first, last) in enumerate(chunks):
            if index in done:
                bar.update(int(starts[last] - starts[first]))
                continue
            tokens.seek(int(starts[first]) * plan.bytes_per_token)
            for batch in encode(order[first:last]):
                tokens.write(_as_bytes(batch, plan.dtype))
                bar.update(batch.tokens.shape[0])
            tokens.flush()
            os.fsync(tokens.fileno())
            _remember(folder, {index}, len(chunks), mode="a")


def _remember(folder: Path, done: set[int], count: int, mode: str = "w") -> None:
    """Write the finished chunks anew (which mends a torn last line), or add one."""
    with (folder / CHUNKS).open(mode) as stream:
        stream.writelines(json.dumps({"chunk": index, "of": count}) + "\n" for index in sorted(done))


def _as_bytes(batch: TokenBatch, dtype: str) -> memoryview:
    """The states of a batch as they lie on disk."""
    packed = batch.tokens.to(DTYPES[dtype]).cpu().contiguous()
    if not bool(torch.isfinite(packed).all()):
        worst = float(batch.tokens.abs().max())
        raise StoreError(f"--store_dtype={dtype}: a hidden state of size {worst:g} does not fit; use bfloat16 or float32")
    return memoryview(packed.view(torch.uint8).numpy()).cast("B")


def _finished_chunks(folder: Path, plan: StorePlan) -> set[int]:
    """Chunks that an earlier process wrote whole by this very plan; none where plan or sizes differ. A torn last line does not count."""
    if not all((folder / name).is_file() for name in (CHUNKS, PLAN, TOKENS)) or (folder / TOKENS).stat().st_size != plan.size_bytes:
        return set()
    with np.load(folder / PLAN) as written:
        if not np.array_equal(written["lengths"], plan.lengths):
            return set()
    lines = [json.loads(line) for line in (folder / CHUNKS).read_text().split("\n")[:-1]]
    return {int(line["chunk"]) for line in lines if line["of"] == len(plan.chunks())}


def _say_size(folder: Path, plan: StorePlan, verbose: bool) -> None:
    free = shutil.disk_usage(folder).free
    say(
        f"store {folder}: {len(plan.lengths):,} texts, {int(plan.lengths.sum()):,} tokens, "
        f"{plan.size_bytes / 2**20:,.1f} MiB of {free / 2**30:,.1f} GiB free",
        verbose,
    )
    if plan.size_bytes > free:
        raise _no_room(folder, plan)


def _reserve(folder: Path, plan: StorePlan) -> None:
    """Take the disk space before the first token, so that a full disk is found now and not after hours."""
    mode = "r+b" if (folder / TOKENS).exists() else "w+b"
    with (folder / TOKENS).open(mode) as tokens:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(tokens.fileno(), 0, plan.size_bytes)
        except OSError as error:
            raise _no_room(folder, plan) from error
        tokens.truncate(plan.size_bytes)


def _no_room(folder: Path, plan: StorePlan) -> StoreError:
    free = shutil.disk_usage(folder).free
    return StoreError(
        f"--store_dir={folder.parent}: needs {plan.size_bytes / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
        "choose another folder, a shorter --max_length, fewer rows or --precompute_hidden_states=0"
    )


@contextmanager
def _locked(folder: Path, verbose: bool) -> Iterator[None]:
    """One writer at a time; the system drops the lock of a process that dies."""
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"store {folder}: another process is writing it, waiting", verbose)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
