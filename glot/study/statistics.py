"""Statistics over seeds and rows: t-intervals, paired tests, equivalence, Holm's correction, detectable differences, a bootstrap."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from glot.training.metrics import METRICS

LEVEL = 0.95
ROUNDING = 1e-12
"""Scores that differ by less are equal: the mean of equal numbers is off by their last bit."""


class Spread(NamedTuple):
    """Mean, standard deviation (n - 1), number of seeds, and the half-width of the 95 % t-interval (NaN for one seed)."""

    mean: float
    sd: float
    n: int
    half_width: float

    @property
    def in_words(self) -> str:
        """The mean, and the half-width where seeds tell of one: not for one seed, nor where all gave the same."""
        return f"{self.mean:.3f} ± {self.half_width:.3f}" if self.n > 1 and self.sd > 0 else f"{self.mean:.3f}"


class Paired(NamedTuple):
    """A comparison over n equal seeds: mean difference and p of the paired t-test.

    p is NaN below two seeds, and of two arms whose seeds change nothing, as of probes on fixed poolers: their difference is no sample.
    `detectable` is the smallest difference that n seeds with this spread would have found significant before any correction.
    """

    difference: float
    p: float
    n: int
    detectable: float


def spread(values: Sequence[float]) -> Spread:
    """The `Spread` of one arm over its seeds.

    Raises:
        ValueError: no values.
    """
    n = len(values)
    if not n:
        raise ValueError("no values")
    sd = math.nan if n < 2 else float(np.std(values, ddof=1)) if np.ptp(values) > ROUNDING else 0.0
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) if n > 1 else math.nan
    return Spread(float(np.mean(values)), sd, n, quantile * sd / math.sqrt(n))


def paired(values: Sequence[float], baseline: Sequence[float], resolution: float | None = 0.0) -> Paired:
    """Compare an arm with the baseline, seed by seed.

    Args:
        values: of the arm.
        baseline: of the baseline, for the same seeds.
        resolution: one row's share of the score, which is taken for the standard deviation where all seeds gave the same difference;
            None = seeds change nothing in both arms.

    Raises:
        ValueError: not the same number of seeds.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} seeds against {len(baseline)}: a paired test needs the same ones")
    difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    mean, n = float(difference.mean()), len(difference)
    if n < 2 or resolution is None:
        return Paired(mean, math.nan, n, math.nan)
    error = _standard_error(difference, resolution)
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    if error == 0:  # the t-test is undefined
        return Paired(mean, 1.0 if abs(mean) < ROUNDING else 0.0, n, 0.0)
    return Paired(mean, 2 * float(stats.t.sf(abs(mean) / error, n - 1)), n, quantile * error)


def _standard_error(difference: np.ndarray, resolution: float) -> float:
    """Of a mean over seeds; of equal differences that of a metric which moves by one row."""
    deviation = float(difference.std(ddof=1)) if np.ptp(difference) > ROUNDING else resolution
    return deviation / math.sqrt(len(difference))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction over all comparisons of a table. NaN stays NaN and is not counted."""
    order = [index for index in np.argsort(p_values) if not math.isnan(p_values[index])]
    adjusted, running = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, p_values[index] * (len(order) - rank)))
        adjusted[index] = running
    return adjusted


def equivalence(values: Sequence[float], baseline: Sequence[float], margin: float, resolution: float = 0.0) -> float:
    """P of two one-sided paired t-tests (TOST): small where the difference lies inside (-margin, margin). NaN below two seeds.

    `resolution` as in `paired`.

    Source: Schuirmann 1987; statsmodels' `ttost_paired`.
    """
    difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    n = len(difference)
    if n < 2:
        return math.nan
    error = _standard_error(difference, resolution)
    mean = float(difference.mean())
    if error == 0:
        return 0.0 if abs(mean) < margin else 1.0
    return float(max(stats.t.sf((mean + margin) / error, n - 1), stats.t.cdf((mean - margin) / error, n - 1)))


def wald(difference: float, error: float, margin: float | None) -> tuple[float, float]:
    """P of a z-test of a difference with a standard error, and of two one-sided ones against a margin (NaN without a margin).

    Both are NaN where the error is.
    """
    if math.isnan(error):
        return math.nan, math.nan
    if error == 0:
        return 1.0 if difference == 0 else 0.0, math.nan if margin is None else float(abs(difference) >= margin)
    p = 2 * float(stats.norm.sf(abs(difference) / error))
    return p, math.nan if margin is None else float(stats.norm.sf((margin - abs(difference)) / error))


def mcnemar(lost: int, gained: int) -> float:
    """P of McNemar's exact test: rows that one classifier alone gets right, `lost` and `gained`; 1 where there are none.

    Source: McNemar 1947; statsmodels' `mcnemar(exact=True)`.
    """
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def draw_rows(rows: int, resamples: int, seed: int = 0) -> np.ndarray:
    """(resamples, rows): how often each row is drawn, with replacement."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(rows, np.full(rows, 1 / rows), size=resamples)


def resampled(metric: str, labels: np.ndarray, outputs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """A metric of `METRICS` on every resample: (resamples,).

    Args:
        metric: its name.
        labels: (S,).
        outputs: (S, C) or (S,).
        counts: of `draw_rows`.
    """
    if metric not in COUNTED or (metric != "accuracy" and outputs.shape[1] > 2):
        where = [np.repeat(np.arange(len(labels)), one) for one in counts]
        return np.array([METRICS[metric](labels[rows], outputs[rows]) for rows in where])
    found = outputs.argmax(1)
    if metric == "accuracy":
        return counts @ (found == labels) / len(labels)
    both, chosen, true = (counts @ part.astype(float) for part in (found * labels, found, labels))
    if metric == "f1":
        return np.divide(2 * both, chosen + true, out=np.zeros_like(both), where=chosen + true > 0)
    total = len(labels)
    scale = np.sqrt(chosen * true * (total - chosen) * (total - true))
    return np.divide(total * both - chosen * true, scale, out=np.zeros_like(both), where=scale > 0)


COUNTED = ("accuracy", "f1", "mcc")
"""Metrics that follow from counts of rows, f1 and mcc those of two classes; the others are computed on each resample."""


def interval(draws: np.ndarray) -> tuple[float, float, float]:
    """Standard deviation of a bootstrap and both ends of its 95 % interval; all NaN unless at least half of the draws have a value.

    A draw has none where its metric is not defined on the rows drawn, as average precision without a row of the class.
    """
    known = draws[np.isfinite(draws)]
    if 2 * len(known) < len(draws):
        return math.nan, math.nan, math.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(known.std(ddof=1)), float(low), float(high)
