"""Run folders: made under a name, marked with the fingerprint of their run, and locked by the process that works in them."""

import errno
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from glot.errors import DISK, ConfigError
from glot.locate import expand_user
from glot.locks import take_lock
from glot.progress import warn

Written = TypeVar("Written")

MARK = ".glot-run"
"""A file that says: `--overwrite=1` may replace this folder. It holds the run's fingerprint, and its lock is held while the run works."""
RESULT = "result.json"
"""The last file of a run."""


class FolderLock:
    """An exclusive lock on a run folder, held until `release` or the end of this process.

    Args:
        folder: marked.

    Raises:
        BlockingIOError: another process works in the folder.

    Examples:
        >>> lock = FolderLock(Path("runs/cola-glot-s42-0123abcd"))
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._thread = folder.resolve(), threading.get_ident()
        for other in [other for other in _held if (other._folder, other._thread) == (self._folder, self._thread)]:
            other.release()  # of a run that broke off: one thread does one run at a time
        self._handle: IO[bytes] | None = (folder / MARK).open("rb")
        try:
            take_lock(self._handle)
        except OSError:
            self.release()
            raise
        _held.add(self)

    def release(self) -> None:
        """Let others have the folder."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None
            _held.discard(self)


_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked process must not hold the folder of its parent when the parent is gone."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)


class FolderTakenError(ConfigError):
    """Another process works in the folder of a run."""


def open_run_folder(root: Path, name: str, overwrite: bool, fingerprint: str, resume: bool) -> tuple[Path, FolderLock]:
    """The folder of a run that was begun and not finished, with `resume`; else a new one, see `create_run_folder`.

    Raises:
        ConfigError: the folder to replace was not made by `create_run_folder`.
    """
    for folder in _numbered(root, name) if resume else []:
        if not (folder / RESULT).exists() and read_mark(folder) == fingerprint:
            try:
                return folder, FolderLock(folder)
            except BlockingIOError:  # the same command is at work there
                continue
    folder = create_run_folder(root, name, overwrite, fingerprint)
    try:
        return folder, FolderLock(folder)
    except BlockingIOError as error:  # which began in between
        raise FolderTakenError(f"--run_name={name}: another process works in {folder}; wait for it, or choose another name") from error


def _numbered(root: Path, name: str) -> list[Path]:
    """`name`, `name-2`, `name-3`, ... as far as they are there."""
    counts: dict[int, Path] = {}
    for folder in root.iterdir() if root.is_dir() else ():
        found = re.fullmatch(r"(?:-([1-9]\d*))?", folder.name.removeprefix(name)) if folder.name.startswith(name) else None
        if found and folder.is_dir():
            counts[int(found[1] or 1)] = folder
    return [counts[count] for count in sorted(counts)]


def make_folder(folder: Path) -> None:
    """A folder and those above it; one that is there stays as it is.

    Raises:
        ConfigError: it cannot be made, though its parent seemed to allow it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK:
            raise
        raise ConfigError(f"{folder}: cannot be made ({error.strerror}); name another folder") from error


def write_somewhere(folder: Path, write: Callable[[Path], Written], ask: bool) -> Written:
    """`write(folder)`; where its disk is full and somebody sits at a terminal, a copy of the folder elsewhere.

    Args:
        folder: of a run.
        write: may be called again, with another folder.
        ask: whether to ask at all.

    Raises:
        OSError: the disk is full, and nobody named another folder.
    """
    while True:
        try:
            return write(folder)
        except OSError as error:
            if error.errno not in DISK or not ask or not sys.stdin.isatty():
                raise
            warn(f"{folder}: cannot be written ({error.strerror}); what was trained is still in memory")
            warn("type another --output_dir for it and Enter; Enter alone tries again, Ctrl-D gives up")
            answer = sys.stdin.readline()
            if not answer:
                raise
            if answer.strip():
                folder = _copied(folder, expand_user(answer.strip()))


def _copied(folder: Path, root: Path) -> Path:
    """A copy of a run folder under another root; the folder itself where that fails."""
    try:
        fresh = create_run_folder(root, folder.name, overwrite=False, fingerprint=read_mark(folder) or "")
        for path in folder.iterdir():
            if path.is_file() and path.name != MARK and not path.match("*.partial"):
                shutil.copy2(path, fresh / path.name)
    except (OSError, ConfigError) as error:
        warn(f"{root}: cannot be written ({error.strerror})" if isinstance(error, OSError) else str(error))
        return folder
    return fresh


def wait_until_free(folder: Path) -> None:
    """Return when no other process works in a folder; at once where it is no run folder."""
    while (folder / MARK).is_file():
        try:
            FolderLock(folder).release()
        except BlockingIOError:
            time.sleep(0.2)
        else:
            return


def find_results(root: Path) -> list[Path]:
    """Every `result.json` under a folder; what vanishes or cannot be read on the way is passed over."""
    return [Path(place) / RESULT for place, _, names in os.walk(root) if RESULT in names]


def read_mark(folder: Path) -> str | None:
    """The fingerprint that a folder is marked with; empty in folders of older versions, None where there is no mark."""
    path = folder / MARK
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None


def create_run_folder(root: Path, name: str, overwrite: bool, fingerprint: str = "") -> Path:
    """A new folder `root/name`; where that exists it is replaced with `overwrite`, else `name-2`, `name-3`, ... is taken.

    Raises:
        ConfigError: the folder to replace was not made by this function, or another process works in it.
    """
    folder, count = root / name, 1
    if overwrite and folder.is_dir():
        if not (folder / MARK).is_file() and any(folder.iterdir()):
            raise ConfigError(f"--overwrite=1: {folder} is no run folder (it has no {MARK}); move it away, or choose another --run_name")
        try:
            lock = FolderLock(folder) if (folder / MARK).is_file() else None
        except BlockingIOError as error:
            raise FolderTakenError(
                f"--overwrite=1: another process works in {folder}; wait for it, or choose another --run_name"
            ) from error
        shutil.rmtree(folder)
        if lock is not None:
            lock.release()
    make_folder(root)
    fresh = Path(tempfile.mkdtemp(prefix=f".{name[:64]}.", dir=root))  # marked before it has its name: a kill leaves no folder without
    fresh.chmod(0o777 & ~current_umask())
    (fresh / MARK).write_text(fingerprint, encoding="utf-8")
    while True:
        try:
            fresh.rename(folder)
            return folder
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            count += 1
            folder = root / f"{name}-{count}"


def current_umask() -> int:
    """Rights that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
