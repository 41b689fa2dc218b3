"""Cross-validation: which fold each row belongs to."""

import numpy as np
from sklearn.model_selection import StratifiedKFold

from glot.errors import DataError
from glot.types import Examples
from glot.words import counted

QUANTILES = 10
"""Groups of scores that each fold gets its share of."""


def assign_folds(rows: Examples, folds: int, seed: int, is_class: bool) -> np.ndarray:
    """The fold of each row, (S,) from 0: shuffled by the seed, every fold with the same share of each class or quantile of the scores.

    Raises:
        DataError: a class has fewer rows than there are folds.
    """
    if is_class:
        groups = rows.labels.astype(np.int64)
    else:
        edges = np.quantile(rows.labels, np.linspace(0, 1, QUANTILES + 1)[1:-1])
        groups = np.unique(np.digitize(rows.labels, edges), return_inverse=True)[1]
    counts = np.bincount(groups)
    fewest = int(counts[counts > 0].min())
    if len(rows) < folds:
        raise DataError(f"--folds={folds}: the number of rows is {len(rows)}, so not every fold can have one; use fewer folds")
    if is_class and fewest < folds:
        raise DataError(f"--folds={folds}: a class has {counted(fewest, 'row')}, so not every fold can have one; use fewer folds")
    found = np.empty(len(rows), dtype=np.int64)
    with_few = StratifiedKFold(folds, shuffle=True, random_state=seed)
    if fewest < folds:  # a quantile of few rows, where many scores are equal
        groups = np.zeros_like(groups)
    for fold, (_, held) in enumerate(with_few.split(np.zeros(len(rows)), groups)):
        found[held] = fold
    return found
