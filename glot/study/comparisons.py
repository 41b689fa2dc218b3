"""Comparisons that a study file names beforehand: over seeds and over rows, with a verdict that can also be `cannot tell`."""

import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glot.csv_files import read_rows
from glot.errors import DataError
from glot.progress import warn
from glot.report.tables import markdown
from glot.study.statistics import LEVEL, draw_rows, equivalence, holm, interval, paired, resampled, wald
from glot.training.metrics import RANK_METRICS
from glot.training.predictions import outputs_of
from glot.training.result_file import PREDICTIONS
from glot.words import signed

DIFFERENT, EQUAL, UNCLEAR = "different", "equal within the margin", "cannot tell"
RESAMPLES = 1000
"""Draws of the bootstrap over rows."""


class ArmRuns(NamedTuple):
    """The runs of an arm at a grid point: score and folder by seed."""

    metric: str
    values: dict[int, float]
    folders: dict[int, Path]

    @property
    def moves(self) -> bool:
        """Whether seeds change anything: where nothing takes a gradient, one run serves for all of them."""
        return len(set(self.folders.values())) > 1


class Comparison(NamedTuple):
    """One arm minus another at a grid point.

    Attributes:
        arms: both names.
        where: the grid point in words.
        metric: the reported one.
        seeds: number of equal seeds.
        difference: mean over seeds.
        over_seeds: half-width of the 95 % t-interval; NaN where seeds change nothing, as with probes on fixed poolers, or for one seed.
        over_rows: 95 % interval of the bootstrap over rows, of the mean over seeds.
        p: the larger p of both: a difference must show over seeds and over rows. NaN for one seed. After Holm in `verdicts`.
        p_equal: of equivalence, the larger of both; NaN without a margin.
        margin: within which arms count as equal.
    """

    arms: tuple[str, str]
    where: str
    metric: str
    seeds: int
    difference: float
    over_seeds: float
    over_rows: tuple[float, float]
    p: float
    p_equal: float
    margin: float | None


def compare_arms(arms: tuple[str, str], where: str, first: ArmRuns, second: ArmRuns, margin: float | None) -> Comparison:
    """Compare two arms over their equal seeds.

    Raises:
        DataError: they have no seed in common, or were scored on other rows.
    """
    seeds = sorted(first.values.keys() & second.values.keys())
    if not seeds:
        raise DataError(f"compare: {arms[0]} and {arms[1]} have no finished seed in common at {where}; run the study again")
    ours, theirs = ([one.values[seed] for seed in seeds] for one in (first, second))
    differences, rows = row_differences(first, second, seeds)
    moves = first.moves or second.moves  # else the rows alone can tell
    test = paired(ours, theirs, 1 / rows if moves else None)
    error, *over_rows = interval(differences)
    p, p_equal = wald(test.difference, error, margin)
    if moves:
        p = float(np.maximum(test.p, p))  # which is NaN where either is
        p_equal = math.nan if margin is None else float(np.maximum(equivalence(ours, theirs, margin, 1 / rows), p_equal))
    if len(seeds) < 2:  # one seed says nothing about others
        p = p_equal = math.nan
    half = test.detectable if moves else math.nan
    return Comparison(arms, where, first.metric, len(seeds), test.difference, half, (over_rows[0], over_rows[1]), p, p_equal, margin)


def row_differences(first: ArmRuns, second: ArmRuns, seeds: list[int]) -> tuple[np.ndarray, int]:
    """The difference of the arms' mean scores over seeds on resamples of the rows, (RESAMPLES,), and the number of rows.

    Raises:
        DataError: the arms were scored on other rows.
    """
    sums = np.zeros(RESAMPLES)
    known: np.ndarray | None = None
    for sign, arm in ((1, first), (-1, second)):
        for seed in seeds:
            labels, scores = row_scores(arm.folders[seed] / PREDICTIONS, arm.metric)
            known = labels if known is None else known
            if not np.array_equal(known, labels):
                raise DataError(f"{arm.folders[seed]}: was scored on other rows than the arm that it is compared with")
            sums += sign * scores / len(seeds)
    return sums, 0 if known is None else len(known)


@cache
def row_scores(path: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels (S,) of a run's predictions (zeros where it has ranks), and its metric on resamples of them: (RESAMPLES,).

    Cached, for an arm stands in several comparisons.
    """
    ranks = read_ranks(path)
    if ranks is not None:
        return np.zeros(len(ranks)), _counts(len(ranks)) @ RANK_METRICS[metric](ranks) / len(ranks)
    labels, outputs = read_predictions(path)
    return labels, resampled(metric, labels, outputs, _counts(len(labels)))


@cache
def _counts(rows: int) -> np.ndarray:
    return draw_rows(rows, RESAMPLES)


def read_ranks(path: Path) -> np.ndarray | None:
    """Ranks (S,) of a contrastive run's file; None where it holds predictions."""
    header, rows = read_rows(path)
    return np.array([float(row["rank"]) for row in rows]) if "label" not in header else None


def read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels (S,) and outputs (S, C) or (S,) of a run's `predictions.csv`."""
    header, rows = read_rows(path)
    classes = sum(name.startswith("score_") and name[6:].isdecimal() for name in header)
    return np.array([float(row["label"]) for row in rows]), outputs_of(rows, classes or 1)


def verdicts(found: list[Comparison]) -> list[tuple[float, str]]:
    """P after Holm over all named comparisons, and what it says, of each."""
    corrected = holm([one.p for one in found])
    words = []
    for one, p in zip(found, corrected, strict=True):
        equal = one.p_equal < 1 - LEVEL
        words.append(EQUAL if equal else DIFFERENT if p < 1 - LEVEL else UNCLEAR)
    return list(zip(corrected, words, strict=True))


HEADER = ["comparison", "where", "metric", "difference", "95 % over seeds", "95 % over rows", "seeds", "p (Holm)", "margin", "verdict"]


def comparison_table(found: list[Comparison]) -> tuple[list[str], list[list[str]]]:
    """One line per comparison."""
    lines = []
    for one, (p, word) in zip(found, verdicts(found), strict=True):
        seeds = "-" if math.isnan(one.over_seeds) else f"± {one.over_seeds:.4f}"
        rows = "-" if math.isnan(one.over_rows[0]) else f"[{signed(one.over_rows[0])}, {signed(one.over_rows[1])}]"
        margin = "-" if one.margin is None else f"{one.margin:g}"
        names = f"{one.arms[0]} - {one.arms[1]}"
        shown = "-" if math.isnan(p) else f"{p:.4f}"
        lines.append([names, one.where, one.metric, signed(one.difference), seeds, rows, str(one.seeds), shown, margin, word])
    return HEADER, lines


EXPLAINED = (
    "Named beforehand in the study file. `difference`: mean over equal seeds. A verdict `different` needs p below 0.05 after Holm over "
    "this table, where p is the larger of a paired t-test over seeds and a z-test over rows, whose standard error is that of a bootstrap "
    f"({RESAMPLES:,} draws, seed 0; those on which the metric is not defined are left out). "
    "`equal within the margin`: two one-sided tests at 0.05, over seeds and over rows. Else one cannot tell. "
    "Where all seeds gave the same difference, its standard deviation is taken as one row's share. "
    "A dash over seeds: seeds change nothing in these arms, or there is one alone, from which one cannot tell. "
    "A dash over rows: the metric is not defined on most draws. "
    "Comparisons outside this table are exploratory."
)


def section(found: list[Comparison]) -> str:
    """The table and what it means, as Markdown; nothing without comparisons."""
    return f"{markdown(*comparison_table(found))}\n\n{EXPLAINED}" if found else ""


def named_comparisons(study: dict[str, Any], arms: dict[tuple[str, str], ArmRuns]) -> list[Comparison]:
    """Those that a study names, at each grid point that has both arms.

    Args:
        study: of `study.json`.
        arms: (arm, grid point in words) -> its runs.
    """
    margins: dict[str, float] = study.get("margins") or {}
    points = list(dict.fromkeys(where for _, where in arms))
    found = []
    for first, second in study.get("compare") or []:
        for where in points:
            if (first, where) in arms and (second, where) in arms:
                one, other = arms[first, where], arms[second, where]
                if not one.values.keys() & other.values.keys():
                    warn(f"{first} - {second} at {where}: no seed finished in both, so they are not compared")
                    continue
                found.append(compare_arms((first, second), where, one, other, margins.get(one.metric)))
    idle = margins.keys() - {one.metric for one in found}
    if found and idle:
        reported = ", ".join(sorted({one.metric for one in found}))
        warn(f"margins: {', '.join(sorted(idle))} is reported by no comparison, only {reported}; name that for a verdict of equality")
    return found
