"""Metric names and the library calls behind them: (labels (S,), outputs) -> float, fractions of 1.

Outputs are scores (S, C) for classes, cosines (S,) for similarity.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

Metric = Callable[[np.ndarray, np.ndarray], float]


def predicted_class(outputs: np.ndarray) -> np.ndarray:
    """(S, C) -> (S,)."""
    return outputs.argmax(1)


def _correlation(function: Callable[..., object]) -> Metric:
    def compute(labels: np.ndarray, outputs: np.ndarray) -> float:
        if len(labels) < 2:  # a correlation needs two points
            return math.nan
        with warnings.catch_warnings():  # constant outputs are answered with NaN, which callers turn into null
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            return float(function(outputs.astype(np.float64), labels.astype(np.float64))[0])

    return compute


METRICS: dict[str, Metric] = {
    "accuracy": lambda labels, outputs: float(sklearn_metrics.accuracy_score(labels, predicted_class(outputs))),
    "f1": lambda labels, outputs: float(sklearn_metrics.f1_score(labels, predicted_class(outputs), zero_division=0)),
    "mcc": lambda labels, outputs: float(sklearn_metrics.matthews_corrcoef(labels, predicted_class(outputs))),
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}


def mean_reciprocal_rank(ranks: np.ndarray, depth: int = 10) -> float:
    """Mean of 1 / rank over rows (S,), 0 for a rank beyond `depth`."""
    return float(np.where(ranks <= depth, 1 / ranks, 0).mean())


def recall_at_one(ranks: np.ndarray) -> float:
    """Share of rows (S,) whose positive comes first."""
    return float((ranks == 1).mean())


def finite(value: float) -> float | None:
    """The value, or None where it is not a number: JSON has no NaN."""
    return value if math.isfinite(value) else None
