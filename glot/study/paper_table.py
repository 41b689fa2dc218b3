"""The table of a study for a paper: arms by grid points as LaTeX, where bold follows from a test and not from size."""

from typing import TYPE_CHECKING

from glot.report.tables import latex
from glot.study.drawings import label, row_spread
from glot.study.statistics import LEVEL, Paired, holm, paired

if TYPE_CHECKING:
    from glot.study.report import Row

NOTE = """% Mean and half-width of the 95 % t-interval over seeds. Packages: booktabs.
% Bold: the highest mean at a grid point, and every arm that a paired t-test over equal seeds does not tell from it (p >= 0.05 after
% Holm over the arms of the point, or no test, since no seed moves either). Nothing is bold where no arm is told from the highest,
% or where an arm has one seed.
"""


def paper_table(rows: "list[Row]") -> str:
    """The table, with a comment that says what bold means. The longer of arms and grid points runs down."""
    points = list(dict.fromkeys(label(row.point) for row in rows))
    arms = list(dict.fromkeys(row.arm for row in rows))
    known = {(row.arm, label(row.point)): row for row in rows if row.values}
    metrics = {label(row.point): row.metric for row in known.values()}
    leading = {(arm, point) for point in points for arm in leaders([row for (_, where), row in known.items() if where == point])}
    names = {point: f"{point} ({metrics.get(point, '-')})" for point in points}
    down: list[str] = arms if len(arms) >= len(points) else points
    across = points if down is arms else arms
    header = ["arm", *(names[point] for point in points)] if down is arms else ["", *(arm or "score" for arm in arms)]
    lines, bold = [], set[tuple[int, int]]()
    for place, one in enumerate(down):
        places = [(one, other) if down is arms else (other, one) for other in across]
        lines.append([(one or "-") if down is arms else names[one], *(_cell(known.get(key)) for key in places)])
        bold |= {(place, column) for column, key in enumerate(places, 1) if key in leading}
    return NOTE + latex(header, lines, frozenset(bold))


def paired_rows(row: "Row", other: "Row") -> Paired | None:
    """One arm against another over their equal seeds; None where there are none."""
    seeds = sorted(row.values.keys() & other.values.keys())
    known = [one.resolution for one in (row, other) if one.resolution is not None]
    ours, theirs = ([one.values[seed] for seed in seeds] for one in (row, other))
    return paired(ours, theirs, max(known, default=None)) if seeds else None


def leaders(rows: "list[Row]") -> set[str]:
    """The arm with the highest mean and those that its seeds do not tell from it; empty where that is all of them or one seed decides."""
    if len(rows) < 2:
        return set()
    best = max(rows, key=lambda row: row_spread(row).mean)
    others = [row for row in rows if row is not best]
    p_values = []
    for row in others:
        test = paired_rows(best, row)
        if test is None or test.n < 2:
            return set()
        p_values.append(test.p)
    level = {row.arm for row, p in zip(others, holm(p_values), strict=True) if not p < 1 - LEVEL}  # NaN: no seed moves them
    return set() if len(level) == len(others) else {best.arm, *level}


def _cell(row: "Row | None") -> str:
    if row is None:
        return ""
    return row_spread(row).in_words
