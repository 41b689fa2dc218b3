"""Rows of a user's file, one after the other: CSV, TSV, JSONL, JSON, Parquet, each also as .gz, or a table of the hub.

Text formats are read with the standard library instead of `datasets`, because only so a problem can be named by the line an editor shows.
"""

import csv
import gzip
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from glot.csv_files import csv_reader
from glot.errors import ConfigError, DataError, reason
from glot.files import HUB, find_files, kind_of
from glot.progress import warn

STDIN = "-"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""A data set's name on the hub; the oldest have no owner."""
BROKEN = (OSError, EOFError, zlib.error)
"""What reading a file may raise, packed ones included."""


class Record(NamedTuple):
    """One row: column -> value, its file, and where it stands there, from 1: a line of a text file, else a row."""

    values: dict[str, Any]
    file: str
    line: int
    unit: str = "line"

    @property
    def where(self) -> str:
        """In words."""
        return f"{self.file}: {self.unit} {self.line}"


def read_records(path: Path) -> Iterator[Record]:
    """The rows of a file in order; blank lines of text files do not count.

    Raises:
        DataError: not readable as its name says, named by line.
    """
    kind = kind_of(path)
    assert kind is not None
    try:
        yield from READERS[kind](path)
    except BROKEN as error:
        why = getattr(error, "strerror", None) or reason(error)
        raise DataError(f"{path}: cannot be read ({why}); check the file") from error


def read_stdin() -> Iterator[Record]:
    """One row per line of standard input: a JSON object, or else a text, which is then column `text`."""
    for number, line in _lines(STDIN, sys.stdin.buffer):
        if not line.strip():
            continue
        if line.lstrip().startswith("{"):
            yield Record(_parse_object(STDIN, number, line), STDIN, number)
        else:
            yield Record({"text": line.rstrip("\r\n")}, STDIN, number)


def open_binary(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _lines(name: str, stream: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """Number and text of each line.

    Raises:
        DataError: bytes that are no UTF-8, named by line.
    """
    for number, line in enumerate(stream, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}: line {number}: holds a byte that is not UTF-8 (0x{line[error.start]:02x} at column {error.start + 1}); "
                "save the file as UTF-8"
            ) from error


def _read_csv(path: Path, delimiter: str = ",") -> Iterator[Record]:
    with open_binary(path) as stream:
        table = csv_reader((line for _, line in _lines(str(path), stream)), delimiter, strict=True)
        header: list[str] | None = None
        start = 1
        while True:
            try:
                row = next(table, None)
            except csv.Error as error:
                raise DataError(f"{path}: line {start}: is no row of a table ({error}); check its quotes and separators") from error
            if row is None:
                return
            if header is None and row:
                header = _check_header(path, start, row)
            elif header is not None and row:
                if len(row) != len(header):
                    raise DataError(
                        f"{path}: line {start}: has {len(row)} fields, the first line names {len(header)} columns; "
                        "check its quotes and separators"
                    )
                if delimiter == "\t" and any(line.count("\t") == len(header) - 1 for field in row for line in field.split("\n")[1:]):
                    warn(
                        f"{path}: line {start}: a field in quotes holds lines that look like rows, up to line {table.line_num}; "
                        "where a quote is a letter there, double it inside of quotes, or save the file as .jsonl"
                    )
                yield Record(dict(zip(header, row, strict=True)), str(path), start)
            start = table.line_num + 1


def _check_header(path: Path, line: int, names: list[str]) -> list[str]:
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise DataError(f"{path}: line {line}: names column {twice!r} twice; rename one of them")
    return names


def _read_tsv(path: Path) -> Iterator[Record]:
    return _read_csv(path, "\t")


def _read_jsonl(path: Path) -> Iterator[Record]:
    with open_binary(path) as stream:
        for number, line in _lines(str(path), stream):
            if line.strip():
                yield Record(_parse_object(str(path), number, line), str(path), number)


def _parse_object(name: str, number: int, line: str) -> dict[str, Any]:
    """The object of one line.

    Raises:
        DataError: not JSON, not an object, or a key twice.
    """
    try:
        found = json.loads(line.rstrip(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: line {number}: is not JSON ({_json_reason(error)}); one object per line") from error
    if not isinstance(found, dict):
        raise DataError(f"{name}: line {number}: holds {str(found)[:40]}, not an object; one object per line")
    return found


def _json_reason(error: Exception) -> str:
    """What is wrong, and in which column: the library counts lines from where it was handed the text."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ValueError(f"key {twice!r} twice")
    return dict(pairs)


def _read_json(path: Path) -> Iterator[Record]:
    """A list of objects; or JSON lines under another name."""
    with open_binary(path) as stream:
        text = "".join(line for _, line in _lines(str(path), stream))
    if text.lstrip().startswith("{"):
        try:
            lone = json.loads(text, object_pairs_hook=_unique)
        except (ValueError, RecursionError):
            yield from _read_jsonl(path)
            return
        lists = [value for value in lone.values() if isinstance(value, list)] if isinstance(lone, dict) else []
        found = lists[0] if len(lone) == 1 and lists else [lone]
    else:
        try:
            found = json.loads(text, object_pairs_hook=_unique) if text.strip() else []
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is not JSON ({reason(error)}); give a list of objects, or one object per line as .jsonl") from error
    for number, row in enumerate(found if isinstance(found, list) else [found], start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: row {number}: is {str(row)[:40]}, not an object; give a list of objects")
        yield Record(row, str(path), number, "row")


def _read_parquet(path: Path) -> Iterator[Record]:
    from glot.data.parquet import read_parquet  # late: `pyarrow` takes a quarter of a second

    for number, row in enumerate(read_parquet(path), start=1):
        yield Record(row, str(path), number, "row")


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
"""Suffix -> reader."""


class Table(NamedTuple):
    """Rows that can be read, and where from.

    Attributes:
        name: for messages.
        records: the rows, anew at each call.
        class_names: column -> names of its classes by number, where the source declares them.
    """

    name: str
    records: Callable[[], Iterator[Record]]
    class_names: dict[str, list[str]]


def open_table(flag: str, text: str, split: str | None) -> Table:
    """What a flag names: files, or `hub:owner/name[:config][@revision]`.

    Raises:
        ConfigError: see `find_files`.
        DataError: the hub does not give the table.
    """
    if not text.startswith(HUB):
        files = find_files(flag, text)
        return Table(", ".join(map(str, files)), lambda: itertools.chain.from_iterable(map(read_records, files)), {})
    from glot.data.hub import iterate, open_hub_table

    repository, _, revision = text.removeprefix(HUB).partition("@")
    repository, _, config = repository.partition(":")
    if not HUB_NAME.fullmatch(repository):
        raise ConfigError(f"--{flag}={text}: must be {HUB}owner/name[:config][@revision]")
    where = f"{text} ({split or 'train'})"
    rows, names = open_hub_table(repository, config or None, revision or None, split or "train")
    return Table(where, lambda: (Record(row, where, number, "row") for number, row in enumerate(iterate(rows))), names)
