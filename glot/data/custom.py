"""A user's own rows as a task: `--task=custom`."""

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glot.data.labels import CLASS, Label, LabelFacts, decide_kind, encode_label, find_facts, one_kind, read_label
from glot.data.records import Record, Table, open_table
from glot.errors import DataError, nearest
from glot.files import HUB, PLAIN_TEXT, find_files, kind_of
from glot.locate import expand_user
from glot.types import Examples, Places
from glot.utf8 import is_utf8

CUSTOM = "custom"
TRAIN, EVALUATION = "train", "evaluation"


class CustomSpec(NamedTuple):
    """What is read from which files; the fields are flags.

    Attributes:
        label_range: `low,high`, or None = read from the training rows.
    """

    train_file: str
    eval_file: str | None = None
    text_columns: str = "text"
    label_column: str = "label"
    label_kind: str = "auto"
    label_range: str | None = None
    train_split: str | None = None
    eval_split: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the text columns."""
        return split_names(self.text_columns)

    @property
    def evaluation(self) -> tuple[str, str, str | None] | None:
        """Flag, file and split of the evaluation rows; None where a share of the training rows is kept out."""
        if self.eval_file is not None:
            return "eval_file", self.eval_file, self.eval_split
        return ("train_file", self.train_file, self.eval_split) if self.eval_split is not None else None


def own_files(spec: CustomSpec) -> list[Path]:
    """The files of a custom task."""
    named = [("train_file", spec.train_file), ("eval_file", spec.eval_file or HUB)]
    return [path for flag, text in named if not text.startswith(HUB) for path in find_files(flag, text)]


class CustomRows(NamedTuple):
    """Both sets of rows, read and checked; `evaluation` is None where no file brings it."""

    train: Examples
    evaluation: Examples | None
    labels: LabelFacts
    notes: list[str]


def split_names(text: str) -> tuple[str, ...]:
    """`premise, hypothesis` -> the names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_range(text: str | None) -> tuple[float, float] | None:
    """`0,5` -> (0.0, 5.0).

    Raises:
        ValueError: not two rising numbers.
    """
    if text is None:
        return None
    low, high = (float(part) for part in text.split(","))
    if not low < high:
        raise ValueError(text)
    return low, high


def load_custom(spec: CustomSpec, num_train: int | None) -> CustomRows:
    """Read the rows of a custom task; the training rows decide what the labels are.

    Args:
        spec: files and columns.
        num_train: the first so many training rows; None = all.

    Raises:
        DataError: a file, column, row or label that is wrong, named by file and line.
    """
    table = open_table("train_file", spec.train_file, spec.train_split)
    texts, labels, places = _read(table, spec, num_train)
    try:
        kind, why = decide_kind(labels, spec.label_kind, len(spec.texts))
        facts = find_facts(labels, kind, parse_range(spec.label_range))
    except ValueError as error:
        raise DataError(f"{table.name}: column {spec.label_column!r}: {error}") from error
    if facts.kind == CLASS and spec.label_range is not None:
        raise DataError(
            f"--label_range={spec.label_range}: {table.name} holds classes, not scores; leave it out, or use --label_kind=score"
        )
    named = _with_declared_names(facts, table.class_names.get(spec.label_column, []))
    notes = [f"labels ({spec.label_column}): {why}"] if spec.label_kind == "auto" else []
    train = Examples(CUSTOM, TRAIN, texts, _encode(labels, facts, places), spec.texts, places)
    if spec.evaluation is None:
        return CustomRows(train, None, named, notes)
    texts, labels, places = _read(open_table(*spec.evaluation), spec, None)
    evaluation = Examples(CUSTOM, EVALUATION, texts, _encode(labels, facts, places), spec.texts, places)
    return CustomRows(train, evaluation, named, notes)


def _with_declared_names(facts: LabelFacts, names: list[str]) -> LabelFacts:
    """Class names that the hub's table declares, where its labels are their numbers."""
    fits = names and all(name.isdecimal() and int(name) < len(names) for name in facts.names)
    return facts._replace(names=tuple(names[int(name)] for name in facts.names)) if fits else facts


def _read(table: Table, spec: CustomSpec, most: int | None) -> tuple[tuple[list[str], ...], list[Label], Places]:
    """Texts by column, labels as the file has them, and where each row stands."""
    columns: tuple[list[str], ...] = tuple([] for _ in spec.texts)
    labels: list[Label] = []
    files: dict[str, int] = {}
    file_of, line_of, unit = array("i"), array("q"), "line"
    kinds: Counter[str] = Counter()
    first_of: dict[str, str] = {}
    for record in _first(table, most):
        for column, text in zip(columns, read_texts(record, spec.texts), strict=True):
            column.append(text)
        label = _read_label(record, spec)
        labels.append(label)
        kinds[label.kind] += 1
        first_of.setdefault(label.kind, f"{record.where}: {spec.label_column} is {label.name!r}, {label.kind}")
        file_of.append(files.setdefault(record.file, len(files)))
        line_of.append(record.line)
        unit = record.unit
    if not labels:
        raise DataError(f"{table.name}: holds no rows; check the file")
    as_words = spec.label_kind == CLASS and all(map(_is_text, files))  # as asked for, `1` and `one` are then two names
    usual = None if as_words else one_kind(kinds)
    if usual is not None:
        odd = next(line for kind, line in first_of.items() if kind != usual)
        way_out = ", or take all for names with --label_kind=class" if all(map(_is_text, files)) else ""
        raise DataError(f"{odd}, and most labels are {usual.split(' ', 1)[1]}s; mend the file{way_out}")
    return columns, labels, Places(tuple(files), np.array(file_of), np.array(line_of), unit)


def _first(table: Table, most: int | None) -> Iterator[Record]:
    for number, record in enumerate(table.records()):
        if most is not None and number >= most:
            return
        yield record


def read_texts(record: Record, names: tuple[str, ...]) -> list[str]:
    """The texts of a row.

    Raises:
        DataError: a column is missing, or holds no text.
    """
    texts = []
    for name in names:
        if name not in record.values:
            raise _no_column(record, name, "text_columns")
        text = record.values[name]
        if text is None or (isinstance(text, str) and not text.strip()):
            raise DataError(f"{record.where}: column {name!r} is empty; give a text, or leave the row out")
        if isinstance(text, str) and not is_utf8(text):
            raise DataError(f"{record.where}: column {name!r} holds half a surrogate pair ({ascii(text)[:40]}); mend it")
        if not isinstance(text, str):
            raise DataError(f"{record.where}: column {name!r} is {str(text)[:40]!r}, not a text; quote it, or name another column")
        texts.append(text)
    return texts


def _no_column(record: Record, name: str, flag: str) -> DataError:
    there, where = [str(column) for column in record.values], record.file if _is_text(record.file) else record.where
    odd = next((sign for sign in ";\t|" if len(there) == 1 and sign in there[0]), None)
    hint = "" if odd is None else f"; its separator seems to be {odd!r}: save it with commas, or with tabs as .tsv"
    return DataError(f"{where}: no column {name!r} (--{flag}){nearest(name, there)}; there are {', '.join(there)}{hint}")


def _is_text(file: str) -> bool:
    """Whether a file holds nothing but text."""
    return not file.startswith(HUB) and kind_of(expand_user(file)) in PLAIN_TEXT


def _read_label(record: Record, spec: CustomSpec) -> Label:
    name = spec.label_column
    if name not in record.values:
        raise _no_column(record, name, "label_column")
    try:
        label = read_label(record.values[name], _is_text(record.file))
    except ValueError as error:
        raise DataError(f"{record.where}: column {name!r} is {error}") from error
    if label is None:
        raise DataError(f"{record.where}: column {name!r} is empty; give a label, or leave the row out")
    return label


def _encode(labels: list[Label], facts: LabelFacts, places: Places) -> np.ndarray:
    inverse = {name: place for place, name in enumerate(facts.names)}
    encoded = np.empty(len(labels), dtype=np.float64)
    for row, label in enumerate(labels):
        try:
            encoded[row] = encode_label(label, facts, inverse)
        except ValueError as error:
            raise DataError(f"{places.of(row)}: label {error}") from error
    return encoded
