"""The tables behind the tasks: where the hub or a local mirror has them, and their rows as examples.

Columns get their places here and nowhere else.
"""

import glob
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glot.data.records import read_records
from glot.errors import DataError, nearest
from glot.types import Examples
from glot.utf8 import is_utf8
from glot.words import counted

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
PARTS = "-[0-9]*-of-[0-9]*.parquet"
"""How the hub names the parts of a split: `train-00000-of-00001.parquet`."""


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


def find_split_files(data_dir: Path, table: HubTable, split: str) -> list[Path]:
    """The files of a split in a local mirror: one under its name, or the parts that a download of the repository holds.

    Raises:
        DataError: no such file, and the message names the splits that are there; or not all parts.
    """
    folder = data_dir / table.repository / table.config
    for suffix in SUFFIXES:
        if (folder / f"{split}{suffix}").is_file():
            return [folder / f"{split}{suffix}"]
    parts = sorted(folder.glob(glob.escape(split) + PARTS))
    if parts:
        whole = parts[-1].stem.rpartition("-")[2]
        if [path.name for path in parts] != [f"{split}-{part:05d}-of-{whole}.parquet" for part in range(int(whole))]:
            found = ", ".join(path.name for path in parts[:4])
            raise DataError(
                f"--data_dir={data_dir}: {folder} holds {found}, not the {int(whole)} parts of {split}; fetch those, and no others"
            )
        return parts
    there = sorted({_split_of(path) for path in folder.glob("*") if path.name.endswith(SUFFIXES) and path.is_file()})
    listing = f"splits there: {', '.join(there)}{nearest(split, there)} (--eval_split)" if there else "the folder holds none"
    raise DataError(f"--data_dir={data_dir}: no {folder / split}.jsonl, .jsonl.gz or .parquet; {listing}")


def _split_of(path: Path) -> str:
    name = path.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name.rsplit("-", 3)[0] if path.match(f"*{PARTS}") else name


def mirror_files(name: str, data_dir: str | None) -> list[Path]:
    """The files that a mirror holds for a task; none for tasks without a table."""
    if data_dir is None or name not in TABLES:
        return []
    folder = Path(data_dir) / TABLES[name].repository / TABLES[name].config
    return [path for path in sorted(folder.glob("*")) if path.is_file()]


def open_rows(table: HubTable, split: str, data_dir: Path | None) -> Iterator[dict[str, Any]]:
    """The rows of a split, from the mirror in `data_dir` or from the hub.

    Raises:
        DataError: the split cannot be found or read.
    """
    if data_dir is not None:
        files = find_split_files(data_dir, table, split)
        return (record.values for record in itertools.chain.from_iterable(map(read_records, files)))
    from glot.data.hub import iterate, open_hub_table  # late: `datasets` takes half a second

    try:
        return iterate(open_hub_table(table.repository, table.config, None, split)[0])
    except DataError as error:
        raise DataError(f"{error}; a local mirror is named by --data_dir or GLOT_DATA_DIR") from error


def load_hub_examples(name: str, split: str, data_dir: Path | None, num_rows: int | None) -> Examples:
    """The first `num_rows` examples (None = all) of a task of `TABLES`; labels as the file has them, float64.

    Raises:
        DataError: missing split or column, an empty split, a text that is none, a missing or hidden label (-1), named by row.
    """
    table = TABLES[name]
    rows = list(itertools.islice(open_rows(table, split, data_dir), num_rows))
    where = f"{table.repository}/{table.config} {split}"
    if not rows:
        raise DataError(f"{where}: holds no rows")
    there = list(dict.fromkeys(column for row in rows for column in row))
    missing = [column for column in (*table.columns, table.label) if column not in there]
    if missing:
        raise DataError(f"{where}: no column {', '.join(missing)}; it has {', '.join(there)}")
    columns: tuple[list[Any], ...] = tuple([row.get(column) for row in rows] for column in table.columns)
    for column, texts in zip(table.columns, columns, strict=True):
        wrong = next((row for row, text in enumerate(texts) if not (isinstance(text, str) and is_utf8(text))), None)
        if wrong is not None:
            raise DataError(f"{where}: row {wrong}: {column} {_no_text(texts[wrong])}")
    return Examples(name, split, columns, _labels(where, split, [row.get(table.label) for row in rows]), table.columns)


def _no_text(value: Any) -> str:
    return f"holds half a surrogate pair ({ascii(value)[:40]}); mend it" if isinstance(value, str) else f"is {str(value)[:40]}, not a text"


def _labels(where: str, split: str, values: list[Any]) -> np.ndarray:
    """Labels (S,), float64."""
    wrong = next((row for row, label in enumerate(values) if not _is_label(label)), None)
    if wrong is not None:
        raise DataError(f"{where}: row {wrong}: label is {str(values[wrong])[:40]!r}, not a number")
    labels = np.array([np.nan if label is None else label for label in values], dtype=np.float64)
    hidden = np.flatnonzero(~(labels >= 0))
    if len(hidden):
        raise DataError(
            f"{where}: row {hidden[0]} has no label ({labels[hidden[0]]:g}; {counted(len(hidden), 'row')} like it): "
            + ("rows to train on need one" if split == "train" else "this split cannot be scored, choose another --eval_split")
        )
    return labels


def _is_label(value: Any) -> bool:
    """A number that float64 holds exactly, or nothing."""
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) <= 1 << 53)
