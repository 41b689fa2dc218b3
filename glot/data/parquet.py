"""Parquet files: rows read some at a time, and JSON lines written as a table. The only door to `pyarrow`."""

import gzip
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from glot.errors import DataError, library_door, reason


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, some at a time; unpacked first where its name ends in .gz.

    Raises:
        DataError: it is none, or holds what cannot be read.
    """
    with library_door(DataError, lambda error: f"{path}: not readable as Parquet ({reason(error)})"):
        whole = io.BytesIO(gzip.decompress(path.read_bytes())) if path.suffix.lower() == ".gz" else path
        for batch in parquet.ParquetFile(whole).iter_batches(batch_size=4096):
            yield from batch.to_pylist()


def write_parquet(lines: Path, path: Path) -> None:
    """JSON lines as a Parquet file: texts stay texts, and a column of mixed kinds becomes texts of JSON."""
    kinds: dict[str, set[str]] = {}
    with lines.open(encoding="utf-8") as stream:
        for row in map(json.loads, stream):
            for name, value in row.items():
                kinds.setdefault(name, set()).add(_kind(value))
    schema = pa.schema([(name, COLUMN_TYPES.get(frozenset(found - {"null"}), pa.string())) for name, found in kinds.items()])
    as_json = {name for name in kinds if schema.field(name).type == pa.string() and kinds[name] - {"null", "text"}}
    with lines.open(encoding="utf-8") as stream, parquet.ParquetWriter(path, schema) as writer:
        while part := [json.loads(line) for line in itertools.islice(stream, 4096)]:
            for row in part:
                row.update({name: json.dumps(row[name], ensure_ascii=False) for name in as_json if row.get(name) is not None})
                row.update({name: text.encode("utf-8", "backslashreplace").decode() for name, text in row.items() if isinstance(text, str)})
            writer.write_table(pa.Table.from_pylist(part, schema))


COLUMN_TYPES = {
    frozenset({"truth"}): pa.bool_(),
    frozenset({"whole"}): pa.int64(),
    frozenset({"number"}): pa.float64(),
    frozenset({"whole", "number"}): pa.float64(),
    frozenset({"vector"}): pa.list_(pa.float32()),
}
"""Kinds of a column's values -> its type; text for all others."""


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "vector" if value and all(isinstance(part, float) for part in value) else "other"
    names = {bool: "truth", int: "whole", float: "number", str: "text", type(None): "null"}
    return "other" if isinstance(value, int) and abs(value) >= 1 << 63 else names.get(type(value), "other")
