"""Write a store: the plan, then chunk after chunk, each recorded when finished, and the manifest last."""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from glot.distributed import ALONE, Processes
from glot.errors import StoreError
from glot.progress import counter, say, warn
from glot.states.store.layout import CHUNKS, DTYPES, KEY, LOCK, MANIFEST, PLAN, TOKENS, Manifest, StoreKey
from glot.types import TokenBatch

CHUNK_TOKENS = 1 << 14
"""Tokens per chunk: four encoding batches. A killed process repeats about one chunk, and small chunks give processes equal shares."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
ELSEWHERE = "choose another folder"
Encode = Callable[[np.ndarray], Iterable[Sequence[TokenBatch]]]
"""rows (n,) of one chunk -> their states in that order, some sentences at a time, one batch per store."""


@dataclass(frozen=True)
class StorePlan:
    """Where each sentence is stored in `tokens.bin`, derived from the token counts alone.

    Attributes:
        lengths: (S,) int64, tokens of each sentence, in the caller's order.
        hidden_size: d.
        dtype: a name of `DTYPES`.

    Examples:
        >>> StorePlan(np.array([7, 12, 5]), 384, "float16").size_bytes
    """

    lengths: np.ndarray
    hidden_size: int
    dtype: str

    @cached_property
    def order(self) -> np.ndarray:
        """(S,) sentences from long to short, ties in their order. So batches pad little, and one that exceeds memory fails first."""
        return np.argsort(-self.lengths, kind="stable")

    @property
    def bytes_per_token(self) -> int:
        """The width d times the bytes of one number."""
        return self.hidden_size * DTYPES[self.dtype].itemsize

    @property
    def size_bytes(self) -> int:
        """Size of `tokens.bin`."""
        return int(self.lengths.sum()) * self.bytes_per_token

    @cached_property
    def chunks(self) -> list[tuple[int, int]]:
        """[first, last) positions in `order` of each chunk of about `CHUNK_TOKENS` tokens."""
        ends = np.cumsum(self.lengths[self.order])
        chunk = (ends - 1) // CHUNK_TOKENS
        starts = np.flatnonzero(np.diff(chunk, prepend=-1))
        return list(zip(starts.tolist(), [*starts[1:].tolist(), len(ends)], strict=True))


@dataclass(frozen=True)
class WriteOptions:
    """How a store is completed.

    Attributes:
        resume: keep the chunks that an earlier process finished.
        rebuild: delete what is there, even a complete store.
        verbose: print a line and a progress bar.
        team: processes that share the chunks. Rank 0 locks, prepares and writes the manifest.

    Examples:
        >>> WriteOptions(rebuild=True, verbose=True)
    """

    resume: bool = True
    rebuild: bool = False
    verbose: bool = False
    team: Processes = ALONE


def write_stores(
    root: Path,
    keys: list[StoreKey],
    plan: StorePlan,
    encode: Encode,
    versions: dict[str, str],
    options: WriteOptions,
    backbone: dict[str, object] | None = None,
) -> list[Path]:
    """Complete the stores of `keys`, all from one pass over the texts, and return their folders.

    The keys differ in their layer alone; `encode` yields one batch per key.

    Raises:
        StoreError: not enough room on the disk, or a state that the store's precision cannot hold.
    """
    folders = [key.folder(root) for key in keys]
    team = options.team
    with ExitStack() as locks:
        if team.is_first:
            for folder in sorted(folders):  # one lock order for all runs, else two could deadlock
                folder.mkdir(parents=True, exist_ok=True)
                locks.enter_context(_locked(folder, options.verbose))
            for folder in folders if options.rebuild else []:
                _remove(folder)
            # another run may have written some while this one waited
            missing = [(folder, key) for folder, key in zip(folders, keys, strict=True) if not (folder / MANIFEST).is_file()]
            _prepare(missing, plan, options)
        team.wait()
        places = {folder: place for place, folder in enumerate(folders) if not (folder / MANIFEST).is_file()}
        if places:
            done = set.intersection(*(_finished_chunks(folder, plan) for folder in places))
            _write_chunks(places, plan, encode, done, options)
        team.wait()
        for folder, place in places.items() if team.is_first else ():
            totals = len(plan.lengths), int(plan.lengths.sum()), plan.hidden_size, plan.size_bytes, len(plan.chunks)
            Manifest(json.loads(keys[place].to_json()), *totals, versions, backbone).write(folder)
        team.wait()
    return folders


def _prepare(missing: list[tuple[Path, StoreKey]], plan: StorePlan, options: WriteOptions) -> None:
    """Write key and plan of every missing store and reserve its disk space. Chunks that all of them have are kept."""
    if not missing:
        return
    folders = [folder for folder, _ in missing]
    done = set.intersection(*(_finished_chunks(folder, plan) for folder in folders)) if options.resume else set()
    if done:
        say(f"store {', '.join(map(str, folders))}: {len(done)} of {len(plan.chunks)} chunks are there, going on", options.verbose)
    else:
        _say_size(folders, plan, options.verbose)
    for folder, key in missing:
        if not done:
            _remove(folder)
            (folder / KEY).write_text(key.to_json())
            np.savez(folder / PLAN, order=plan.order, lengths=plan.lengths)
        _reserve(folder, plan)
        _remember(folder / CHUNKS, done)
        for path in folder.glob(f"*.{CHUNKS}"):  # files of other ranks: their chunks are in `done`
            path.unlink()


def _remove(folder: Path) -> None:
    """Delete a store. The manifest goes first, so that no partial store looks complete. Existing memory maps keep the old file."""
    for name in (MANIFEST, CHUNKS, PLAN, TOKENS, KEY):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob(f"*.{CHUNKS}"):
        path.unlink()


def _write_chunks(places: dict[Path, int], plan: StorePlan, encode: Encode, done: set[tuple[int, int]], options: WriteOptions) -> None:
    """Write the chunks that are not `done`. `places` maps a folder to the index of its batch in what `encode` yields."""
    starts = np.concatenate([[0], np.cumsum(plan.lengths[plan.order])])
    team = options.team
    with ExitStack() as files, counter("encode", "token", int(starts[-1]), options.verbose) as bar:
        streams = {files.enter_context((folder / TOKENS).open("r+b")): place for folder, place in places.items()}
        for index, (first, last) in enumerate(plan.chunks):
            if (first, last) in done or not team.owns(index):
                bar.update(int(starts[last] - starts[first]))
                continue
            for stream in streams:
                stream.seek(int(starts[first]) * plan.bytes_per_token)
            for batches in encode(plan.order[first:last]):
                for stream, place in streams.items():
                    stream.write(_as_bytes(batches[place], plan.dtype))
                bar.update(batches[0].tokens.shape[0])
            for stream in streams:
                stream.flush()
                os.fsync(stream.fileno())
            for folder in places:
                _remember(folder / (CHUNKS if team.is_first else f"{team.rank}.{CHUNKS}"), {(first, last)}, mode="a")


def _remember(path: Path, done: set[tuple[int, int]], mode: str = "w") -> None:
    """Record finished chunks: rewrite the file, which repairs a truncated last line, or append with mode `a`."""
    with path.open(mode) as stream:
        stream.writelines(json.dumps({"first": first, "last": last}) + "\n" for first, last in sorted(done))


def _as_bytes(batch: TokenBatch, dtype: str) -> memoryview:
    """The states of a batch as bytes in the store's precision."""
    packed = batch.tokens.to(DTYPES[dtype]).cpu().contiguous()
    if not bool(torch.isfinite(packed).all()):
        worst = float(batch.tokens.abs().max())
        raise StoreError(f"--store_dtype={dtype}: a hidden state of size {worst:g} does not fit; use bfloat16 or float32")
    return packed.view(torch.uint8).numpy().data.cast("B")


def _finished_chunks(folder: Path, plan: StorePlan) -> set[tuple[int, int]]:
    """[first, last) of the chunks that earlier processes finished by the same plan; empty where plan or sizes differ.

    A truncated last line is ignored.
    """
    if not all((folder / name).is_file() for name in (CHUNKS, PLAN, TOKENS)) or (folder / TOKENS).stat().st_size != plan.size_bytes:
        return set()
    with np.load(folder / PLAN) as written:
        if not np.array_equal(written["lengths"], plan.lengths):
            return set()
    files = [folder / CHUNKS, *folder.glob(f"*.{CHUNKS}")]
    lines = [json.loads(line) for path in files for line in path.read_text().split("\n")[:-1]]
    return {(line.get("first"), line.get("last")) for line in lines} & set(plan.chunks)  # drops chunks with the bounds of another version


def _say_size(folders: list[Path], plan: StorePlan, verbose: bool) -> None:
    free, needed = shutil.disk_usage(folders[0]).free, plan.size_bytes * len(folders)
    say(
        f"store {', '.join(map(str, folders))}: {len(plan.lengths):,} texts, {int(plan.lengths.sum()):,} tokens, "
        f"{needed / 2**20:,.1f} MiB of {free / 2**30:,.1f} GiB free",
        verbose,
    )
    if needed > free:
        raise _no_room(folders[0], needed)


def _reserve(folder: Path, plan: StorePlan) -> None:
    """Allocate the disk space before the first token, so that a full disk is an error at the start."""
    mode = "r+b" if (folder / TOKENS).exists() else "w+b"
    with (folder / TOKENS).open(mode) as tokens:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(tokens.fileno(), 0, plan.size_bytes)
        except OSError as error:
            raise _no_room(folder, plan.size_bytes) from error
        tokens.truncate(plan.size_bytes)


def _no_room(folder: Path, needed: int) -> StoreError:
    free = shutil.disk_usage(folder).free
    return StoreError(
        f"--store_dir={folder.parent}: needs {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
        "choose another folder, a shorter --max_length, fewer rows or --precompute_hidden_states=0"
    )


@contextmanager
def _locked(folder: Path, verbose: bool) -> Iterator[None]:
    """Hold an exclusive `flock`, so that one process writes at a time. The kernel releases the lock of a process that dies."""
    with (folder / LOCK).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"store {folder}: another process is writing it, waiting", verbose)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise StoreError(
                    f"--store_dir={folder.parent}: {folder.name}/{LOCK} cannot be locked ({error.strerror}); {ELSEWHERE}"
                ) from error
            warn(f"store {folder}: its file system has no locks ({error.strerror}), so let only one process write it")
        yield
