"""`predictions.csv` of a run: what it answered to every row of the reported split, written and read."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from glot.csv_files import read_rows
from glot.data.labels import LabelFacts
from glot.training.metrics import class_table, confusion
from glot.types import Examples

MOST_TEXT = 1 << 24
"""Characters of the reported split up to which `predictions.csv` holds its texts."""


def write_predictions(path: Path, split: Examples, outputs: np.ndarray, labels: LabelFacts) -> None:
    """One line per row of a split: label, prediction, and for classes a score each and both names; then its texts, unless they are many.

    Classes also get `confusion.csv` (rows of class i taken for class j) and `classes.csv` (precision, recall, F1) beside it.
    """
    names = labels.names
    texts = split.columns if sum(len(text) for column in split.columns for text in column) <= MOST_TEXT else ()
    header = ["row", "label", "prediction", *(f"score_{index}" for index in range(len(names)))]
    header += ["label_name", "prediction_name"] if names else []
    titles = split.names or tuple(f"text_{index}" for index in range(len(split.columns)))
    for title in titles[: len(texts)]:
        while title in header or not text_columns_of([title]):  # a name that stands for something else here
            title = f"text_{title}"
        header.append(title)
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(header)
        for row, (label, output, *own) in enumerate(zip(split.labels.tolist(), outputs, *texts, strict=True)):
            if names:
                found = int(output.argmax())
                values = [found, *(f"{value:.9g}" for value in output), names[int(label)], names[found]]
            else:
                values = [f"{output:.9g}"]
            table.writerow([row, label, *values, *own])
    if names:
        _write_class_tables(path.parent, split.labels, outputs, names)


def text_columns_of(header: Iterable[str]) -> list[str]:
    """The columns of `predictions.csv` that hold texts of the data."""
    ours = ("row", "label", "prediction", "label_name", "prediction_name")
    return [name for name in header if name not in ours and not (name.startswith("score_") and name[6:].isdecimal())]


def _write_class_tables(folder: Path, labels: np.ndarray, outputs: np.ndarray, names: tuple[str, ...]) -> None:
    counts = confusion(labels, outputs, len(names)).tolist()
    tables: dict[str, list[list[Any]]] = {
        "confusion.csv": [["label \\ prediction", *names], *([name, *row] for name, row in zip(names, counts, strict=True))],
        "classes.csv": [
            ["class", "precision", "recall", "f1", "rows"],
            *([name, *(f"{share:.4f}" for share in shares), rows] for name, *shares, rows in class_table(labels, outputs, names)),
        ],
    }
    for name, lines in tables.items():
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows(lines)


def write_ranks(path: Path, ranks: np.ndarray) -> None:
    """Row of the held-out slice and the rank of its positive, 1 = first."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["row", "rank"])
        table.writerows(enumerate(ranks.tolist()))


def read_outputs(path: Path, num_labels: int) -> np.ndarray:
    """The outputs of a run's predictions, with the digits that the file has: (S, C) for classes, (S,) for scores."""
    return outputs_of(read_rows(path)[1], num_labels)


def outputs_of(rows: list[dict[str, str]], num_labels: int) -> np.ndarray:
    """The same of rows that were read."""
    if num_labels > 1:
        return np.array([[float(row[f"score_{label}"]) for label in range(num_labels)] for row in rows], dtype=np.float32)
    return np.array([float(row["prediction"]) for row in rows], dtype=np.float32)
