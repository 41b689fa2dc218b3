"""Write a store: the plan, then chunk after chunk, each recorded when finished, and the manifest last."""

import contextlib
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
from glot.errors import DISK, StoreError, library_door, reason
from glot.locks import NO_LOCKS
from glot.progress import counter, say, warn
from glot.states.store.checksums import Part, checksum, damaged_parts, new_checksum
from glot.states.store.layout import CHUNKS, DTYPES, KEY, LOCK, MANIFEST, PLAN, TOKENS, Manifest, StoreKey
from glot.types import TokenBatch
from glot.words import counted

CHUNK_TOKENS = 1 << 14
"""Tokens per chunk: four encoding batches. A killed process repeats about one chunk, and small chunks give processes equal shares."""
ELSEWHERE = "choose another folder"
Chunk = tuple[int, int]
"""[first, last) positions in a plan's order."""
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
    def chunks(self) -> list["Chunk"]:
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
    finals = [key.folder(root) for key in keys]
    folders = [folder.with_name(f".{folder.name}.rebuild") for folder in finals] if options.rebuild else finals
    team = options.team
    with ExitStack() as locks:
        if team.is_first:
            for final in sorted(finals):  # one lock order for all runs, else two could deadlock
                _make_folder(final)
                locks.enter_context(_locked(final, options.verbose))
            for folder in folders if options.rebuild else []:
                folder.mkdir(exist_ok=True)
                _remove(folder)
            # another run may have written some while this one waited
            missing = [(folder, key) for folder, key in zip(folders, keys, strict=True) if not (folder / MANIFEST).is_file()]
            _prepare(missing, plan, options)
        team.wait()
        places = {folder: place for place, folder in enumerate(folders) if not (folder / MANIFEST).is_file()}
        if places:
            done = set.intersection(*(set(_finished_chunks(folder, plan)) for folder in places))
            _write_chunks(places, plan, encode, done, options)
        team.wait()
        for folder, place in places.items() if team.is_first else ():
            totals = len(plan.lengths), int(plan.lengths.sum()), plan.hidden_size, plan.size_bytes, len(plan.chunks)
            sums = sorted((first, last, known) for (first, last), known in _noted_chunks(folder, plan).items())
            plan_sum = checksum((folder / PLAN).read_bytes())
            Manifest(json.loads(keys[place].to_json()), *totals, versions, backbone, plan_sum, sums).write(folder)
        for folder, final in zip(folders, finals, strict=True) if team.is_first and options.rebuild else ():
            _replace(folder, final)
        team.wait()
    return finals


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError as error:
        if error.errno in DISK and error.errno != errno.EROFS:
            raise
        writable = False
    if not writable:
        raise StoreError(f"--store_dir={folder.parent}: has no finished store of these texts, and none can be written; {ELSEWHERE}")


def _replace(folder: Path, final: Path) -> None:
    """Put a rebuilt store in the place of another one of the same key, file by file: a reader finds whole files at any time."""
    for name in (TOKENS, PLAN, KEY, CHUNKS, MANIFEST):
        (folder / name).replace(final / name)
    for path in final.glob(f"*.{CHUNKS}"):
        path.unlink()
    shutil.rmtree(folder)


def _prepare(missing: list[tuple[Path, StoreKey]], plan: StorePlan, options: WriteOptions) -> None:
    """Write key and plan of every missing store and reserve its disk space. Chunks that all of them have are kept."""
    if not missing:
        return
    folders = [folder for folder, _ in missing]
    known: list[dict[Chunk, str]] = [_finished_chunks(folder, plan) for folder in folders] if options.resume else [{}]
    done = set.intersection(*(set(found) for found in known))
    if done:
        say(f"store {', '.join(map(str, folders))}: {len(done)} of {len(plan.chunks)} chunks are there, going on", options.verbose)
    else:
        _say_size(folders, plan, options.verbose)
    for place, (folder, key) in enumerate(missing):
        if not done:
            _remove(folder)
            (folder / KEY).write_text(key.to_json())
            np.savez(folder / PLAN, order=plan.order, lengths=plan.lengths)
        _reserve(folder, plan)
        _remember(folder / CHUNKS, {chunk: known[place][chunk] for chunk in done})
        for path in folder.glob(f"*.{CHUNKS}"):  # files of other ranks: their chunks are in `done`
            path.unlink()


def _remove(folder: Path) -> None:
    """Delete a store. The manifest goes first, so that no partial store looks complete. A reader that has opened it keeps the old file."""
    for name in (MANIFEST, CHUNKS, PLAN, TOKENS, KEY):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob(f"*.{CHUNKS}"):
        path.unlink()


def _write_chunks(places: dict[Path, int], plan: StorePlan, encode: Encode, done: set[Chunk], options: WriteOptions) -> None:
    """Write the chunks that are not `done`. `places` maps a folder to the index of its batch in what `encode` yields."""
    starts = np.concatenate([[0], np.cumsum(plan.lengths[plan.order])])
    team = options.team
    with ExitStack() as files, counter("encode", "token", int(starts[-1]), options.verbose) as bar:
        streams = {files.enter_context((folder / TOKENS).open("r+b")): place for folder, place in places.items()}
        for index, (first, last) in enumerate(plan.chunks):
            if (first, last) in done or not team.owns(index):
                bar.update(int(starts[last] - starts[first]))
                continue
            sums = {place: new_checksum() for place in places.values()}
            for stream in streams:
                stream.seek(int(starts[first]) * plan.bytes_per_token)
            for batches in encode(plan.order[first:last]):
                for stream, place in streams.items():
                    data = _as_bytes(batches[place], plan.dtype)
                    stream.write(data)
                    sums[place].update(data)
                bar.update(batches[0].tokens.shape[0])
            for stream in streams:
                stream.flush()
                os.fsync(stream.fileno())
            for folder, place in places.items():
                notes = folder / (CHUNKS if team.is_first else f"{team.rank}.{CHUNKS}")
                _remember(notes, {(first, last): sums[place].hexdigest()}, mode="a")


def _remember(path: Path, done: dict[Chunk, str], mode: str = "w") -> None:
    """Record finished chunks with their checksums: rewrite the file, which repairs a truncated last line, or append with mode `a`."""
    with path.open(mode) as stream:
        lines = ({"first": first, "last": last, "checksum": known} for (first, last), known in sorted(done.items()))
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def _as_bytes(batch: TokenBatch, dtype: str) -> memoryview:
    """The states of a batch as bytes in the store's precision."""
    packed = batch.tokens.to(DTYPES[dtype]).cpu().contiguous()
    if not bool(torch.isfinite(packed).all()):
        worst = float(batch.tokens.abs().max())
        raise StoreError(f"--store_dtype={dtype}: a hidden state of size {worst:g} does not fit; use bfloat16 or float32")
    return packed.view(torch.uint8).numpy().data.cast("B")


def _noted_chunks(folder: Path, plan: StorePlan) -> dict[Chunk, str]:
    """The chunks that are noted as finished, with their checksums; lines that were cut or damaged are ignored."""
    noted: dict[Chunk, str] = {}
    for path in [folder / CHUNKS, *folder.glob(f"*.{CHUNKS}")]:
        for line in path.read_text(errors="replace").split("\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found = json.loads(line)
                noted[int(found["first"]), int(found["last"])] = str(found["checksum"])
    return {chunk: noted[chunk] for chunk in plan.chunks if chunk in noted}  # drops chunks with the bounds of another version


def _finished_chunks(folder: Path, plan: StorePlan) -> dict[Chunk, str]:
    """The chunks that earlier processes finished by the same plan and whose bytes are still what they were, with their checksums."""
    if not all((folder / name).is_file() for name in (CHUNKS, PLAN, TOKENS)) or (folder / TOKENS).stat().st_size != plan.size_bytes:
        return {}
    try:
        with library_door(StoreError, reason), np.load(folder / PLAN) as written:
            same = np.array_equal(written["lengths"], plan.lengths) and np.array_equal(written["order"], plan.order)
    except StoreError:  # a damaged plan is written anew
        return {}
    if not same:
        return {}
    noted = _noted_chunks(folder, plan)
    ends = np.concatenate([[0], np.cumsum(plan.lengths[plan.order])]) * plan.bytes_per_token
    parts = [Part(int(ends[first]), int(ends[last]), known) for (first, last), known in noted.items()]
    broken = {list(noted)[place] for place in damaged_parts(folder / TOKENS, parts)}
    if broken:
        warn(f"store {folder}: {len(broken)} chunks are damaged and are encoded anew")
    return {chunk: known for chunk, known in noted.items() if chunk not in broken}


def _say_size(folders: list[Path], plan: StorePlan, verbose: bool) -> None:
    free, needed = shutil.disk_usage(folders[0]).free, plan.size_bytes * len(folders)
    where = f"store {folders[0]}" if len(folders) == 1 else f"{len(folders)} hidden layers, a store for each under {folders[0].parent}"
    say(
        f"{where}: {counted(len(plan.lengths), 'text')}, {counted(int(plan.lengths.sum()), 'token')}, "
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


def is_locked(folder: Path) -> bool:
    """Whether a process is writing a store."""
    if not (folder / LOCK).is_file():
        return False
    with (folder / LOCK).open("r+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


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
