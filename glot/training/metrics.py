"""Metric names and the library calls behind them: (labels (S,), outputs) -> float, fractions of 1.

Outputs are scores (S, C) for classes, cosines (S,) for similarity.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

Metric = Callable[[np.ndarray, np.ndarray], float]


def predicted_class(outputs: np.ndarray) -> np.ndarray:
    """(S, C) -> (S,)."""
    return outputs.argmax(1)


def _correlation(function: Callable[..., Any]) -> Metric:
    def compute(labels: np.ndarray, outputs: np.ndarray) -> float:
        if len(labels) < 2:  # a correlation needs two points
            return math.nan
        with warnings.catch_warnings():  # constant outputs are answered with NaN, which callers turn into null
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            return float(function(outputs.astype(np.float64), labels.astype(np.float64))[0])

    return compute


def _auroc(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Area under the ROC curve of the second of two classes; NaN where the labels hold one class alone."""
    if len(np.unique(labels)) < 2:
        return math.nan
    return float(sklearn_metrics.roc_auc_score(labels, outputs[:, 1] - outputs[:, 0]))


def _average_precision(labels: np.ndarray, outputs: np.ndarray) -> float:
    """Area under the precision-recall curve of the second of two classes; NaN where no row is of that class."""
    if not (labels == 1).any():
        return math.nan
    return float(sklearn_metrics.average_precision_score(labels, outputs[:, 1] - outputs[:, 0]))


METRICS: dict[str, Metric] = {
    "accuracy": lambda labels, outputs: float(sklearn_metrics.accuracy_score(labels, predicted_class(outputs))),
    "f1": lambda labels, outputs: float(sklearn_metrics.f1_score(labels, predicted_class(outputs), zero_division=0)),
    "macro_f1": lambda labels, outputs: float(sklearn_metrics.f1_score(labels, predicted_class(outputs), average="macro", zero_division=0)),
    "auroc": _auroc,
    "average_precision": _average_precision,
    "mcc": lambda labels, outputs: float(sklearn_metrics.matthews_corrcoef(labels, predicted_class(outputs))),
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}


def floors(labels: np.ndarray, is_class: bool) -> dict[str, float]:
    """What an answer that does not look at the text scores on these labels (S,), by metric.

    Classes: the most frequent one; F1 of answering 1 to everything; ranks by a constant score. Scores: a constant, whose correlation is 0.
    """
    if not is_class:
        return {"spearman": 0.0, "pearson": 0.0}
    _, counts = np.unique(labels, return_counts=True)
    majority, positive = float(counts.max() / counts.sum()), float((labels == 1).mean())
    macro = 2 * majority / (1 + majority) / len(counts)
    chosen = {"accuracy": majority, "macro_f1": macro, "f1": 2 * positive / (1 + positive), "mcc": 0.0}
    return chosen | {"auroc": 0.5, "average_precision": positive}


def chance_ranks(count: int) -> dict[str, float]:
    """What a random order of `count` texts scores."""
    return {"mrr_at_10": sum(1 / rank for rank in range(1, min(count, 10) + 1)) / count, "recall_at_1": 1 / count}


def class_table(labels: np.ndarray, outputs: np.ndarray, names: tuple[str, ...]) -> list[tuple[str, float, float, float, int]]:
    """Name, precision, recall, F1 and number of rows of each class."""
    columns = sklearn_metrics.precision_recall_fscore_support(labels, predicted_class(outputs), labels=range(len(names)), zero_division=0)
    return [(name, float(p), float(r), float(f), int(n)) for name, p, r, f, n in zip(names, *columns, strict=True)]


def confusion(labels: np.ndarray, outputs: np.ndarray, classes: int) -> np.ndarray:
    """(C, C): rows of class i that were taken for class j."""
    return sklearn_metrics.confusion_matrix(labels, predicted_class(outputs), labels=range(classes))


RANK_METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mrr_at_10": lambda ranks: np.where(ranks <= 10, 1 / ranks, 0),
    "recall_at_1": lambda ranks: (ranks == 1).astype(float),
}
"""Metrics of retrieval: ranks (S,) of the rows' positives, from 1 -> each row's share (S,), whose mean is the metric."""


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the half-width of its 95 % t-interval; None below two values."""
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return mean, None
    return mean, float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def finite(value: float) -> float | None:
    """The value, or None where it is not a number: JSON has no NaN."""
    return value if math.isfinite(value) else None
