"""Heads that scikit-learn fits on pooled vectors (`--head=probe`, `--head=svm`), and the threshold of two classes (`--threshold`)."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC
from torch import Tensor

from glot.errors import DataError
from glot.nn.heads import FittedHead
from glot.progress import warn
from glot.words import counted

PROBE, SVM = "probe", "svm"
INVERSE_PENALTIES = tuple(10.0**power for power in range(-4, 2))
"""C of the logistic regression and of the support vector machine, on standardised features."""
PENALTIES = tuple(10.0 ** (power / 2) for power in range(-2, 11))
"""alpha of the ridge regression."""
PARTS = 3
"""Parts of the training rows among which C is chosen: each is scored once by a model of the others."""
MOST_STEPS = 500
UNFINISHED = "unfinished_fits"
NEWTON_WEIGHTS = 1024
"""Most weights for which Newton's method is taken, which is then faster than L-BFGS (benchmarks/README.md); its matrix is their square."""


class Fitted(NamedTuple):
    """What a solver found: weights (C, F) and bias (C,) on standardised features, the penalty that was chosen, and fits cut off."""

    weight: np.ndarray
    bias: np.ndarray
    penalty: float
    unfinished: int = 0


def fit_head(head: FittedHead, kind: str, features: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """Fit a head on the training rows alone; the penalty is chosen by cross-validation among them.

    Args:
        head: gets scaling, weights and bias.
        kind: `probe` (logistic regression; ridge regression for scores) or `svm` (linear, squared hinge loss; the paper's Table 8).
        features: (S, F) of `head.features`.
        labels: (S,) classes as int64, or scores.
        seed: of the parts of the cross-validation.

    Returns:
        what was chosen, for the result: `C` or `alpha`; with `unfinished_fits`, where any stopped at `MOST_STEPS`.

    Raises:
        DataError: a class has fewer rows than there are parts.
    """
    mean, scale = features.mean(0), features.std(0)
    scale[scale < 1e-6] = 1.0  # a feature that never changes says nothing
    rows = ((features - mean) / scale).astype(np.float64)
    if head.is_score:
        found, name = _ridge(rows, labels), "alpha"
    else:
        fewest = int(np.bincount(labels, minlength=head.linear.out_features).min())
        if fewest < PARTS:
            raise DataError(
                f"--head={kind}: a class has {counted(fewest, 'training row')}, and {PARTS} are needed to choose its penalty; add rows"
            )
        parts = StratifiedKFold(PARTS, shuffle=True, random_state=seed)
        found, name = (_logistic if kind == PROBE else _machine)(rows, labels, parts), "C"
    tensors = {"mean": mean, "scale": scale, "linear.weight": found.weight, "linear.bias": found.bias}
    device = head.mean.device
    head.load_state_dict({name: torch.from_numpy(np.asarray(value)).to(device, torch.float32) for name, value in tensors.items()})
    return {name: found.penalty} | ({UNFINISHED: found.unfinished} if found.unfinished else {})


def _ridge(rows: np.ndarray, labels: np.ndarray) -> Fitted:
    model = RidgeCV(PENALTIES).fit(rows, labels)
    return Fitted(model.coef_.reshape(1, -1), np.array([model.intercept_]).reshape(1), float(model.alpha_))


def _logistic(rows: np.ndarray, labels: np.ndarray, parts: StratifiedKFold) -> Fitted:
    outputs = len(np.unique(labels)) if len(np.unique(labels)) > 2 else 1
    solver = "newton-cholesky" if rows.shape[1] * outputs <= NEWTON_WEIGHTS else "lbfgs"
    search = GridSearchCV(
        LogisticRegression(solver=solver, max_iter=MOST_STEPS), {"C": INVERSE_PENALTIES}, cv=parts, scoring="neg_log_loss"
    )
    return _best(search, rows, labels)


def _machine(rows: np.ndarray, labels: np.ndarray, parts: StratifiedKFold) -> Fitted:
    search = GridSearchCV(LinearSVC(max_iter=MOST_STEPS, dual="auto", random_state=0), {"C": INVERSE_PENALTIES}, cv=parts)
    return _best(search, rows, labels)


def _best(search: GridSearchCV, rows: np.ndarray, labels: np.ndarray) -> Fitted:
    """Search and fit; that some fits need more steps is said once, not once per penalty and part."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        search.fit(rows, labels)
    unfinished = sum(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    if unfinished:
        warn(f"{type(search.estimator).__name__}: {unfinished} of its fits did not converge in {MOST_STEPS} steps")
    best = search.best_estimator_
    return Fitted(*_per_class(best.coef_, best.intercept_), float(search.best_params_["C"]), unfinished)


def _per_class(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of two classes, solvers give one row: half of it for each class, with both signs, has the same margin."""
    if len(weight) > 1:
        return weight, bias
    return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2


def best_threshold(outputs: np.ndarray, labels: np.ndarray, metric: str) -> float:
    """The margin (score of the second class minus that of the first) above which the second class is taken, at the best metric.

    Args:
        outputs: (S, 2) of held-out rows.
        labels: (S,) 0 or 1.
        metric: a name of `OF_COUNTS`.

    Returns:
        a midpoint between two margins, or one below or above them all; of several with the same metric, the one nearest to 0.
    """
    margins = outputs[:, 1].astype(np.float64) - outputs[:, 0]
    values = np.unique(margins)
    candidates = np.concatenate([[0.0, values[0] - 1.0, values[-1] + 1.0], (values[1:] + values[:-1]) / 2])
    above = []
    for own in (labels == 1, labels == 0):  # how many margins of each class lie above each candidate
        above.append(own.sum() - np.searchsorted(np.sort(margins[own]), candidates, side="right"))
    true, false = (count.astype(np.float64) for count in above)
    scores = OF_COUNTS[metric](true, false, (labels == 1).sum() - true, (labels == 0).sum() - false)
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    return float(candidates[best[np.abs(candidates[best]).argmin()]])


def _f1(hits: np.ndarray, wrong: np.ndarray, missed: np.ndarray) -> np.ndarray:
    return 2 * hits / np.maximum(2 * hits + wrong + missed, 1)


def _mcc(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray) -> np.ndarray:
    scale = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.divide(tp * tn - fp * fn, scale, out=np.zeros_like(tp), where=scale > 0)


OF_COUNTS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": lambda tp, fp, fn, tn: (tp + tn) / (tp + fp + fn + tn),
    "f1": lambda tp, fp, fn, tn: _f1(tp, fp, fn),
    "macro_f1": lambda tp, fp, fn, tn: (_f1(tp, fp, fn) + _f1(tn, fn, fp)) / 2,
    "mcc": _mcc,
}
"""Metrics of two classes that a threshold moves, from the counts of true and false positives, false and true negatives."""


@torch.no_grad()
def shift(bias: Tensor, threshold: float) -> None:
    """Change a bias (2,) so that the likelier class is the second one exactly above a margin."""
    bias[1] -= threshold
