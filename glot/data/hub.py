"""Tables of the hub, or of a local mirror in the same layout. Columns get their places here and nowhere else."""

import glob
import gzip
import io
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from datasets.exceptions import DatasetNotFoundError
from pyarrow import parquet

from glot.errors import DataError, library_door, nearest, reason
from glot.hub import GATED, MISSING, cache_where_unreachable, explain
from glot.types import Examples

SUFFIXES = (".jsonl", ".jsonl.gz")


class HubTable(NamedTuple):
    """Where a task's rows are: `<repository>/<config>`, the text columns in order, the label column."""

    repository: str
    config: str
    columns: tuple[str, ...]
    label: str = "label"


GLUE = "nyu-mll/glue"
TABLES: dict[str, HubTable] = {
    "cola": HubTable(GLUE, "cola", ("sentence",)),
    "sst2": HubTable(GLUE, "sst2", ("sentence",)),
    "stsb": HubTable(GLUE, "stsb", ("sentence1", "sentence2")),
    "mrpc": HubTable(GLUE, "mrpc", ("sentence1", "sentence2")),
    "qqp": HubTable(GLUE, "qqp", ("question1", "question2")),
    "mnli": HubTable(GLUE, "mnli", ("premise", "hypothesis")),
    "qnli": HubTable(GLUE, "qnli", ("question", "sentence")),
    "rte": HubTable(GLUE, "rte", ("sentence1", "sentence2")),
    "wnli": HubTable(GLUE, "wnli", ("sentence1", "sentence2")),
    "imdb": HubTable("stanfordnlp/imdb", "plain_text", ("text",)),
}


def quiet_library() -> None:
    """No bars and no log lines of the library in this process: what fails is said once, by the error."""
    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)


def find_split_file(data_dir: Path, table: HubTable, split: str) -> Path:
    """The file of a split in a local mirror.

    Raises:
        DataError: no such file; the message names those that are there.
    """
    folder = data_dir / table.repository / table.config
    for suffix in SUFFIXES:
        if (folder / f"{split}{suffix}").is_file():
            return folder / f"{split}{suffix}"
    there = sorted({path.name.split(".jsonl")[0] for path in folder.glob("*.jsonl*")})
    listing = f"splits there: {', '.join(there)}{nearest(split, there)} (--eval_split)" if there else "the folder holds none"
    raise DataError(f"--data_dir={data_dir}: no {folder / split}.jsonl or .jsonl.gz; {listing}")


def load_table(table: HubTable, split: str, data_dir: Path | None, num_rows: int | None) -> datasets.Dataset:
    """The first `num_rows` rows (None = all) of a split.

    Raises:
        DataError: the split cannot be found or read.
    """
    if data_dir is not None:
        path = find_split_file(data_dir, table, split)
        with library_door(DataError, lambda error: f"{path}: not readable as one JSON object per line ({_own_reason(error)})"):
            rows = datasets.load_dataset("json", data_files={"rows": glob.escape(str(path))}, split="rows")  # a path, not a pattern
    else:
        where = f"{table.repository}/{table.config} ({split})"

        def describe(error: Exception) -> str:
            found = explain(error) or _not_found(error) or reason(error)
            return f"{where} cannot be had from the hub: {found}; a local mirror is named by --data_dir or GLOT_DATA_DIR"

        with library_door(DataError, describe), cache_where_unreachable():
            rows = datasets.load_dataset(table.repository, table.config, split=split)
    return rows if num_rows is None else rows.select(range(min(num_rows, len(rows))))


def open_hub_table(repository: str, config: str | None, revision: str | None, split: str) -> tuple[datasets.Dataset, dict[str, list[str]]]:
    """Any table of the hub, and the names of its classes by column, where it declares them.

    Raises:
        DataError: the hub does not give it.
    """
    where = f"hub:{repository}{f':{config}' if config else ''} ({split})"
    door = library_door(DataError, lambda error: f"{where} cannot be had: {explain(error, revision) or _not_found(error) or reason(error)}")
    with door, cache_where_unreachable():
        rows = datasets.load_dataset(repository, config, split=split, revision=revision)
    return rows, {name: list(kind.names) for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)}


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


def _not_found(error: Exception) -> str | None:
    """What the library's own error for a missing data set means: it drops the hub's, which tells gated ones apart."""
    if not isinstance(error, DatasetNotFoundError):
        return None
    return GATED if "gated" in str(error) else MISSING


def _own_reason(error: Exception) -> str:
    """Why a file cannot be read, in the words of the parser below the library where it has any."""
    return reason(error.__cause__ or error) if str(error.__cause__ or error).strip() else "it is empty"


def load_hub_examples(name: str, split: str, data_dir: Path | None, num_rows: int | None) -> Examples:
    """Examples of a task of `TABLES`; labels as the file has them, float64.

    Raises:
        DataError: missing split or column, an empty split, a text that is none, a missing or hidden label (-1), named by row.
    """
    table = TABLES[name]
    rows = load_table(table, split, data_dir, num_rows)
    where = f"{table.repository}/{table.config} {split}"
    missing = [column for column in (*table.columns, table.label) if column not in rows.column_names]
    if missing:
        raise DataError(f"{where}: no column {', '.join(missing)}; it has {', '.join(rows.column_names)}")
    if not len(rows):
        raise DataError(f"{where}: holds no rows")
    with library_door(DataError, lambda error: f"{where}: not readable as one JSON object per line ({reason(error)})"):
        values = rows.to_dict()
    columns = tuple(values[column] for column in table.columns)
    for column, texts in zip(table.columns, columns, strict=True):
        wrong = next((row for row, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise DataError(f"{where}: row {wrong}: {column} is {texts[wrong]!r}, not a text")
    raw = values[table.label]
    wrong = next((row for row, label in enumerate(raw) if not isinstance(label, int | float | None)), None)
    if wrong is not None:
        raise DataError(f"{where}: row {wrong}: {table.label} is {raw[wrong]!r}, not a number")
    labels = np.array([np.nan if label is None else label for label in raw], dtype=np.float64)
    hidden = np.flatnonzero(~(labels >= 0))
    if len(hidden):
        raise DataError(
            f"{where}: row {hidden[0]} has no label ({labels[hidden[0]]:g}; {len(hidden)} rows like it): "
            + ("rows to train on need one" if split == "train" else "this split cannot be scored, choose another --eval_split")
        )
    return Examples(name, split, columns, labels, table.columns)
