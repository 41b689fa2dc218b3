"""Statistics over seeds: t-intervals, paired t-tests, Holm's correction and smallest detectable differences."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Spread(NamedTuple):
    """Mean, standard deviation (n - 1), number of seeds, and the half-width of the 95 % t-interval (NaN for one seed)."""

    mean: float
    sd: float
    n: int
    half_width: float


class Paired(NamedTuple):
    """A comparison over n equal seeds: mean difference and p of the paired t-test (NaN below two seeds).

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
    sd = float(np.std(values, ddof=1)) if n > 1 else math.nan
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) if n > 1 else math.nan
    return Spread(float(np.mean(values)), sd, n, quantile * sd / math.sqrt(n))


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare an arm with the baseline, seed by seed.

    Raises:
        ValueError: not the same number of seeds.
    """
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} seeds against {len(baseline)}: a paired test needs the same ones")
    difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    mean, n = float(difference.mean()), len(difference)
    if n < 2:
        return Paired(mean, math.nan, n, math.nan)
    detectable = spread(difference.tolist()).half_width
    if detectable == 0:  # every seed gave the same difference, so the t-test is undefined
        return Paired(mean, 1.0 if mean == 0 else 0.0, n, 0.0)
    return Paired(mean, float(stats.ttest_1samp(difference, 0).pvalue), n, detectable)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's step-down correction over all comparisons of a table. NaN stays NaN and is not counted."""
    order = [index for index in np.argsort(p_values) if not math.isnan(p_values[index])]
    adjusted, running = [math.nan] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, p_values[index] * (len(order) - rank)))
        adjusted[index] = running
    return adjusted
