"""Errors that a user can cause, and the lookup that suggests the nearest name.

    GlotError
    |-- ConfigError       a flag, a YAML file, a folder named by a flag (may hold several problems)
    |-- DataError         a data set: missing file, column, label
    |-- StateError        a backbone that cannot run on a text, or gives numbers that are not finite
    |-- TrainingError     a loss or weights that are no longer finite
    |-- StoreError        hidden states on disk: no room, wrong fingerprint, overflow
    `-- CheckpointError   weights that do not fit the configuration

`glot.cli` prints each problem on one line of stderr and exits with 2. Everything else is a bug and keeps its traceback.
"""

import difflib
import errno
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Row = TypeVar("Row")


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""What a full disk, a quota, a read-only file system or a limit on file sizes say."""


class GlotError(Exception):
    """Base of all errors that a user can mend."""

    @property
    def problems(self) -> list[str]:
        """One line for each mistake."""
        return [str(self)]


class ConfigError(GlotError):
    """One or more mistakes in flags or configuration files, reported together."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self._problems = list(problems)

    @property
    def problems(self) -> list[str]:
        return self._problems


class DataError(GlotError):
    """A data set that cannot be read as the task needs it."""


class StateError(GlotError):
    """Hidden states that a backbone does not give, or that are not finite.

    Args:
        problem: what is wrong and what to do.
        place: of the text among those that were read together, where one text is to blame.
        where: that text in the user's words (split and row, line), once it is known.
    """

    def __init__(self, problem: str, place: int | None = None, where: str = "") -> None:
        super().__init__(f"{where}: {problem}" if where else problem)
        self.problem, self.place = problem, place


class TrainingError(GlotError):
    """A training that cannot go on; `kept` is the last epoch whose weights were restored, None where there was none."""

    def __init__(self, problem: str, kept: int | None = None) -> None:
        super().__init__(problem)
        self.kept = kept


class StoreError(GlotError):
    """Hidden states that cannot be written or must not be used."""


class CheckpointError(GlotError):
    """Weights that do not fit."""


def reason(error: BaseException) -> str:
    """Kind and first line of a library's error, for the brackets of a message; a line that ends in a colon brings the next one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or a cause of it, says that memory is used up."""
    said = "out of memory|can't allocate memory|not enough memory"
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(said, str(error))):
            return True
        error = error.__cause__
    return False


def memory_line(error: BaseException) -> str:
    """One line about memory that is used up, with the size that was asked for where the error says it."""
    found = re.search(r"allocate ([\d.]+ (?:bytes|[KMGTPE]?iB))", str(error))
    size = f" for another {found[1]}" if found else ""
    return f"memory: there is no room{size}; set a smaller --batch_size, --eval_batch_size or --max_length, or a narrower pooler"


@contextmanager
def library_door(kind: type[GlotError], describe: Callable[[Exception], str]) -> Iterator[None]:
    """Turn whatever a library raises inside the block into one line; only calls of a library belong into the block.

    Used where foreign code runs: models, data, the disk, a user's own pooler, one task of many. Errors of our own pass unchanged.

    Args:
        kind: class of the error that is raised instead.
        describe: the library's error -> the line.
    """
    with _door(lambda error: kind(describe(error))):
        yield


@contextmanager
def disk_door(path: Path) -> Iterator[None]:
    """Turn what a library raises when a disk takes no more into an OSError with a file's name; other errors pass unchanged.

    Args:
        path: that is written, or its folder.
    """

    def describe(error: Exception) -> Exception:
        """The OSError that it is; tokenizers and safetensors have kinds of their own, with the number in their text."""
        found = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number is None or number not in DISK or (isinstance(error, OSError) and error.filename is not None):
            return error
        return OSError(number, os.strerror(number), str(path))

    with _door(describe):
        yield


@contextmanager
def _door(describe: Callable[[Exception], Exception]) -> Iterator[None]:
    try:
        yield
    except GlotError:
        raise
    except Exception as error:  # the one catch-all of the project: which exceptions a library raises is not ours to list
        told = describe(error)
        if told is error:
            raise
        raise told from error


def need(module: str, extra: str, flag: str) -> None:
    """Refuse what needs a package that is not installed.

    Args:
        module: the package's name in an import.
        extra: of this package, which brings it.
        flag: what was asked for, as it was written.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{flag}: needs {module}, which is not installed; pip install 'glot-toolkit[{extra}]'")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`" (did you mean 'cola'?)"`, or nothing where no allowed name comes close."""
    match = difflib.get_close_matches(name.lower(), list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def unknown_name(name: str, allowed: Iterable[str], flag: str) -> str:
    """The one sentence used wherever a name is not among those allowed."""
    allowed = list(allowed)
    return f"--{flag}={name}: unknown{nearest(name, allowed)}; allowed: {', '.join(allowed)}"


def lookup(table: Mapping[str, Row], name: str, flag: str) -> Row:
    """Return `table[name]`.

    Raises:
        ConfigError: the table has no such name; the message suggests the nearest one and lists all.
    """
    if name not in table:
        raise ConfigError(unknown_name(name, table, flag))
    return table[name]
