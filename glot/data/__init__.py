"""Text and labels of every task, and the held-out split. The only door to `datasets` (`hub.py`) and `pyarrow` (`parquet.py`)."""

import math
from pathlib import Path

import numpy as np
from sklearn.model_selection import train_test_split

from glot.data.pairs import PairFile, PairOptions
from glot.data.stress import StressOptions, generate_stress
from glot.data.tables import TABLES, load_hub_examples
from glot.errors import DataError
from glot.types import Examples
from glot.words import counted

__all__ = [
    "TABLES",
    "PairFile",
    "PairOptions",
    "StressOptions",
    "draw_rows",
    "generate_stress",
    "hold_out",
    "load_hub_examples",
    "load_splits",
]


def load_splits(
    name: str, train_split: str, eval_splits: list[str], data_dir: str | None, num_train: int | None
) -> tuple[Examples, list[Examples]]:
    """Training rows (the first `num_train`; None = all) and each evaluation split whole.

    Raises:
        DataError: see `load_hub_examples`.
    """
    folder = None if data_dir is None else Path(data_dir)
    evaluations = [load_hub_examples(name, split, folder, None) for split in eval_splits]
    return load_hub_examples(name, train_split, folder, num_train), evaluations


def draw_rows(
    count: int, fraction: float, seed: int, most: int | None = None, stratify: np.ndarray | None = None, names: tuple[str, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` rows to keep and which share (at most `most` rows) to hold out, both in file order.

    Raises:
        DataError: too few rows for that share, or of a class.
    """
    classes, counts = np.unique([0] if stratify is None else stratify, return_counts=True)
    if stratify is not None and counts.min() < 2:
        lone = classes[counts.argmin()]
        lone = repr(names[int(lone)]) if names else f"{lone:g}"
        raise DataError(
            f"--heldout_fraction={fraction:g}: class {lone} has one of {counted(count, 'training row')}, "
            "and holding out needs two; add some"
        )
    least = len(classes)  # a row of each class
    size = min(max(math.ceil(count * fraction), least), most or count)
    if count - size < least:
        left = f"takes {size} of {counted(count, 'training row')} and leaves {count - size}"
        raise DataError(f"--heldout_fraction={fraction:g}: {left}; give a smaller share, or add rows")
    try:
        kept, held = train_test_split(np.arange(count), test_size=size, random_state=seed, stratify=stratify)
    except ValueError as error:
        raise DataError(f"--heldout_fraction={fraction:g}: cannot be taken from {counted(count, 'training row')} ({error})") from error
    if stratify is not None:
        generator = np.random.default_rng(seed)
        kept, held = _with_every_class(kept, held, stratify, generator)
        held, kept = _with_every_class(held, kept, stratify, generator)
    return np.sort(kept), np.sort(held)


def _with_every_class(
    kept: np.ndarray, held: np.ndarray, classes: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The same draw, where a class that the second part lacks takes the place there of a row of its commonest class.

    Stratified drawing rounds the share of a rare class, often to nothing. A class of one row stays where it is.
    """
    for missing in np.setdiff1d(classes[kept], classes[held]):
        own = np.flatnonzero(classes[kept] == missing)
        names, counts = np.unique(classes[held], return_counts=True)
        if len(own) < 2 or counts.max() < 2:
            continue
        into, out = generator.choice(own), generator.choice(np.flatnonzero(classes[held] == names[counts.argmax()]))
        kept[into], held[out] = held[out], kept[into]
    return kept, held


def hold_out(train: Examples, fraction: float, seed: int, names: tuple[str, ...]) -> tuple[Examples, Examples]:
    """Split training rows into those kept and a held-out share, stratified by label for classes, whose names are given.

    Raises:
        DataError: see `draw_rows`.
    """
    kept, held = draw_rows(len(train), fraction, seed, stratify=train.labels if names else None, names=names)
    return train.take(kept, "train"), train.take(held, "heldout")
