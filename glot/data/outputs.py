"""Rows and vectors written to a file part by part: a command that was killed goes on where it stopped."""

import csv
import hashlib
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from glot.cache import read_facts
from glot.errors import ConfigError, DataError, library_door, reason
from glot.locks import take_lock
from glot.progress import warn
from glot.utf8 import is_utf8

STDOUT = "-"
COPIED_AT_ONCE = 1 << 14
"""Rows."""
HASHED_AT_ONCE = 1 << 20
"""Bytes."""


def csv_lines(rows: list[dict[str, Any]], columns: list[str]) -> bytes:
    """Rows as lines of CSV, without a header."""
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns, lineterminator="\n").writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def csv_header(columns: list[str]) -> bytes:
    """The first line of CSV."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(columns)
    return text.getvalue().encode("utf-8", "backslashreplace")


def json_lines(rows: list[dict[str, Any]], columns: list[str]) -> bytes:
    """Rows as JSON lines."""
    return b"".join(_json_line({name: json_ready(value) for name, value in row.items()}) for row in rows)


def _json_line(row: dict[str, Any]) -> bytes:
    """UTF-8; half a surrogate pair, which UTF-8 cannot hold, is escaped."""
    text = json.dumps(row, ensure_ascii=False)
    return (text if is_utf8(text) else json.dumps(row)).encode() + b"\n"


def json_ready(value: Any) -> Any:
    """A value as JSON holds it: null for what is no number, text for dates, decimals and bytes."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [json_ready(part) for part in value]
    if isinstance(value, dict):
        return {str(name): json_ready(part) for name, part in value.items()}
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _plain(value: Any) -> Any:
    return json.dumps(json_ready(value), ensure_ascii=False) if isinstance(value, list | dict | bool) else value


class Kind(NamedTuple):
    """How a kind of file is written: what stands first, the bytes of some rows, and how the collected bytes become the file."""

    header: Callable[[list[str]], bytes]
    encode: Callable[[list[dict[str, Any]], list[str]], bytes]
    finish: Callable[[Path, Path], None]


def _no_header(columns: list[str]) -> bytes:
    return b""


def _rename(partial: Path, path: Path) -> None:
    partial.replace(path)


def _to_parquet(partial: Path, path: Path) -> None:
    from glot.data.parquet import write_parquet  # late, as in records.py

    whole = path.with_name(path.name + ".whole")
    write_parquet(partial, whole)
    whole.replace(path)
    partial.unlink()


KINDS = {
    ".csv": Kind(csv_header, csv_lines, _rename),
    ".jsonl": Kind(_no_header, json_lines, _rename),
    ".parquet": Kind(_no_header, json_lines, _to_parquet),
}
"""Suffix -> how rows are written."""


def check_output(text: str, suffixes: Iterable[str], overwrite: bool) -> None:
    """Refuse a file that cannot be written, before anything slow.

    Raises:
        ConfigError: of another kind, there already, or in a folder that cannot be written.
    """
    if text == STDOUT:
        return
    path = Path(text)
    if path.suffix not in suffixes:
        raise ConfigError(f"--output={text}: is of no kind that is written; give {', '.join(suffixes)}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ConfigError(f"--output={text}: is there already; choose another name, or --overwrite=1")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise ConfigError(f"--output={text}: cannot be written ({path.absolute().parent} is not a writable folder)")


class Output:
    r"""A file that grows part by part beside its name, and takes its name when it is whole.

    Args:
        path: of the finished file.
        asked: what the content depends on; a part that something else left behind is begun anew.

    Attributes:
        done: rows that are written, those of an earlier command among them.
        columns: of the first row, where it has any.

    Examples:
        >>> with Output(Path("out.csv"), "run and input") as output:
        ...     output.add(b"a,b\n", 1)
    """

    def __init__(self, path: Path, asked: str) -> None:
        self.path, self._asked = path, asked
        self._partial, self._notes = path.with_name(path.name + ".partial"), path.with_name(path.name + ".partial.json")
        self.done, self._bytes, self.columns = 0, 0, list[str]()
        self._digest = hashlib.sha256()  # of the bytes that are written

    def __enter__(self) -> "Output":
        with library_door(DataError, self._complaint):
            self._stream: BinaryIO = os.fdopen(os.open(self._partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            ours = self._is_ours()
        if not ours:
            self._stream.close()
            raise DataError(f"--output={self.path}: another command is writing it; wait for that one, or name another file")
        with library_door(DataError, self._complaint):
            self._resume()
            self._stream.truncate(self._bytes)
            self._stream.seek(self._bytes)
        return self

    def _resume(self) -> None:
        """Take over what an earlier command wrote, if it is what that command wrote."""
        known = read_facts(self._notes)
        if known.get("asked") != self._asked:
            return
        digest = self._digest_of_first(known.get("bytes"))
        if known.get("seal") != self._seal(digest, known):
            warn(f"{self._partial}: is not what was written; begun anew")
            return
        self.done, self._bytes, self.columns, self._digest = known["rows"], known["bytes"], known["columns"], digest

    def _digest_of_first(self, left: Any) -> Any:
        """A hash of so many bytes, or of fewer where there are no more."""
        digest = hashlib.sha256()
        while isinstance(left, int) and left > 0 and (part := self._stream.read(min(left, HASHED_AT_ONCE))):
            digest.update(part)
            left -= len(part)
        return digest

    def _seal(self, digest: Any, notes: dict[str, Any]) -> str:
        """A hash of the bytes and of all that is noted of them."""
        whole = digest.copy()
        whole.update(json.dumps([notes.get(name) for name in ("asked", "rows", "bytes", "columns")]).encode())
        return str(whole.hexdigest())

    def _is_ours(self) -> bool:
        """Lock the file. False where another command holds it, or has renamed it by now."""
        try:
            take_lock(self._stream)
        except BlockingIOError:
            return False
        return self._partial.is_file() and os.path.samestat(self._partial.stat(), os.fstat(self._stream.fileno()))

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        if not self._bytes:  # nothing to go on from
            self._partial.unlink(missing_ok=True)
            self._notes.unlink(missing_ok=True)

    def add(self, data: bytes, rows: int) -> None:
        """Append some rows; they count as done once they are on the disk."""
        with library_door(DataError, self._complaint):
            self._stream.write(data)
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self.done, self._bytes = self.done + rows, self._bytes + len(data)
            self._digest.update(data)
            notes: dict[str, Any] = {"asked": self._asked, "rows": self.done, "bytes": self._bytes, "columns": self.columns}
            written = self._notes.with_suffix(".new")
            written.write_text(json.dumps({**notes, "seal": self._seal(self._digest, notes)}), encoding="utf-8")
            written.replace(self._notes)

    def finish(self, make: Callable[[Path, Path], None]) -> None:
        """The whole file under its own name; `make` turns the collected bytes into it."""
        with library_door(DataError, self._complaint):
            self._stream.close()
            make(self._partial, self.path)
            self._notes.unlink(missing_ok=True)

    def _complaint(self, error: Exception) -> str:
        why = getattr(error, "strerror", None) or reason(error)
        return f"--output={self.path}: cannot be written ({why}); make room or name another file, and run the same command again"


class RowOutput:
    """Rows to a file or to standard output.

    Args:
        text: as in `--output`: a path, or `-`.
        asked: see `Output`.

    Examples:
        >>> with RowOutput("-", "") as output:
        ...     output.add([{"text": "a", "prediction": "b"}])
    """

    def __init__(self, text: str, asked: str) -> None:
        self._kind = KINDS[".jsonl" if text == STDOUT else Path(text).suffix]
        self._output, self._printed = None if text == STDOUT else Output(Path(text), asked), 0

    @property
    def done(self) -> int:
        """Rows that are written."""
        return self._printed if self._output is None else self._output.done

    def __enter__(self) -> "RowOutput":
        if self._output is not None:
            self._output.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._output is not None:
            self._output.__exit__(*error)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Append rows."""
        columns = (self._output.columns if self._output is not None else []) or list(rows[0])
        odd = next((name for row in rows for name in row if name not in columns), None)
        if odd is not None and self._kind.header is csv_header:
            raise DataError(f"--output: a row has column {odd!r}, which the first one lacks; CSV cannot hold it, write .jsonl")
        data = (b"" if self.done else self._kind.header(columns)) + self._kind.encode(rows, columns)
        if self._output is None:
            sys.stdout.write(data.decode())
            sys.stdout.flush()
            self._printed += len(rows)
        else:
            self._output.columns = columns
            self._output.add(data, len(rows))

    def finish(self) -> None:
        """The file is whole."""
        if self._output is not None:
            self._output.finish(self._kind.finish)


def make_npy(width: int) -> Callable[[Path, Path], None]:
    """What turns float32 rows of a width, one behind the other, into a .npy file."""

    def make(partial: Path, path: Path) -> None:
        """Copied part by part, so that memory stays small."""
        rows = np.memmap(partial, dtype=np.float32, mode="r").reshape(-1, width) if partial.stat().st_size else np.empty((0, width))
        whole = path.with_name(path.name + ".whole")
        table = np.lib.format.open_memmap(whole, mode="w+", dtype=np.float32, shape=(len(rows), width))
        for start in range(0, len(rows), COPIED_AT_ONCE):
            table[start : start + COPIED_AT_ONCE] = rows[start : start + COPIED_AT_ONCE]
        table.flush()
        whole.replace(path)
        partial.unlink()

    return make
