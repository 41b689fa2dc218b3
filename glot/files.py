"""The files that a flag names: a path, a pattern, or a comma list of both. Needs no heavy import, so that a wrong name is said at once."""

import glob
from collections.abc import Iterable
from pathlib import Path

from glot.errors import ConfigError, nearest
from glot.locate import expand_user

HUB = "hub:"
"""How the name of a table of the hub begins."""
PLAIN_TEXT = (".csv", ".tsv")
"""Files that hold nothing but text: numbers and truth values are read by their look."""
SUFFIXES = (*PLAIN_TEXT, ".jsonl", ".ndjson", ".json", ".parquet")
"""Kinds of files of rows, each also with .gz behind."""
KINDS = f"give a file of {', '.join(SUFFIXES)}, also .gz"


ChangedAt = tuple[tuple[str, int], ...]


def changed_at(paths: Iterable[Path]) -> ChangedAt:
    """Where files are and when each was last changed, in nanoseconds: rows that are remembered are those of the files as they are."""
    return tuple((str(path.absolute()), path.stat().st_mtime_ns) for path in paths)


def kind_of(path: Path) -> str | None:
    """The suffix that says how a file is read; None for other files."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def find_files(flag: str, text: str) -> list[Path]:
    """The files that a flag names. A path that exists is never read as a pattern.

    Raises:
        ConfigError: nothing there, a folder, a kind of file that is not read, or a file twice.
    """
    whole = expand_user(text)
    parts = [text] if _exists(whole) else [part.strip() for part in text.split(",") if part.strip()]
    found: list[Path] = []
    for part in parts:
        path = expand_user(part)
        matches = [path] if _exists(path) else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        if not matches:
            beside = [file.name for file in path.parent.iterdir() if kind_of(file)] if path.parent.is_dir() else []
            raise ConfigError(f"--{flag}={part}: no such file{nearest(path.name, beside)}; {KINDS}")
        found += matches
    for path in found:
        if path.is_symlink() and not _exists(path):
            raise ConfigError(f"--{flag}={path}: is a link to {path.readlink()}, which is not there; fetch the file")
        if path.is_dir():
            raise ConfigError(f"--{flag}={path}: is a folder; name its files, e.g. {path / '*.csv'}")
        if kind_of(path) is None:
            raise ConfigError(f"--{flag}={path}: is of no kind that is read; {KINDS}")
        if not path.is_file():
            raise ConfigError(f"--{flag}={path}: is no regular file; {KINDS}")
    if not found:
        raise ConfigError(f"--{flag}={text}: names no file; {KINDS}")
    _refuse_twice(flag, text, found)
    return found


def _refuse_twice(flag: str, text: str, found: list[Path]) -> None:
    """Rows of a file that is named twice, by a link or a pattern too, would count twice."""
    known: dict[Path, Path] = {}
    for path in found:
        other = known.setdefault(path.resolve(), path)
        if other is not path:
            raise ConfigError(f"--{flag}={text}: names {path} twice{f' ({other} is the same file)' if other != path else ''}; keep one")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file system takes
        return False
