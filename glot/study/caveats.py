"""Signs that the arms of a study were not at their best, or that their tuning was close."""

import math
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from glot.study.drawings import label
from glot.training.folders import RESULT
from glot.training.linear_heads import PROBE, SVM, UNFINISHED
from glot.training.result_file import peek_result

AT_THE_EDGE = "Tuned values at the edge of their grid, where a wider one may score better:"
CLOSE = "Tuned values that lead by at most one standard error over tuning seeds; other seeds, or another machine, may choose the other one:"
CUT = "Arms in which fits of a probe or a support vector machine stopped at their limit of steps, so their scores may move a little:"
LATE = "Arms whose best epoch is the last in most runs, so more epochs may score better:"


def caveats(cells: list[dict[str, Any]]) -> str:
    """One sentence per sign, with the arms that show it; empty where none does.

    Args:
        cells: of a study's record (`study.json`).
    """
    found: dict[str, list[str]] = {AT_THE_EDGE: [], CLOSE: [], LATE: [], CUT: []}
    for cell in cells:
        name = f"{cell['arm'] or 'run'} ({label(cell['grid'])})" if cell["grid"] else cell["arm"] or "run"
        found[AT_THE_EDGE] += [f"{name} {value}" for value in _edges(cell["tuned"])]
        found[CLOSE] += [f"{name} {value}" for value in _close_choices(cell["tuned"])]
        found[LATE] += [f"{name} {count}" for count in _late(cell["runs"])]
        found[CUT] += [f"{name} {count}" for count in _cut(cell["runs"])]
    return "\n\n".join(f"{sentence} {', '.join(names)}." for sentence, names in found.items() if names)


def _edges(tuned: dict[str, Any]) -> Iterator[str]:
    """Chosen numbers that are the smallest or largest of those tried."""
    for flag, value in tuned["values"].items():
        tried = sorted({float(point[flag]) for point in tuned["scores"] if _is_float(point[flag])})
        if len(tried) > 1 and _is_float(value) and float(value) in (tried[0], tried[-1]):
            yield f"{flag}={float(value):g}"


def _close_choices(tuned: dict[str, Any]) -> Iterator[str]:
    """The chosen values before those that came second, where the difference of their means is within its standard error.

    The error is that of two independent means, from the variance over seeds within the tried points, pooled.
    """
    by_seed = [point.get("by_seed", []) for point in tuned["scores"]]  # none in a record of before
    count = min(map(len, by_seed), default=0)
    if len(by_seed) < 2 or count < 2:
        return
    first, second = sorted(tuned["scores"], key=lambda point: -point["score"])[:2]
    error = math.sqrt(2 / count * fmean(variance(scores) for scores in by_seed))
    if first["score"] - second["score"] <= error:  # equal ones too, where seeds change nothing
        yield f"{_in_words(first)} before {_in_words(second)}"


def _in_words(point: dict[str, Any]) -> str:
    flags = {name: value for name, value in point.items() if name not in ("score", "by_seed")}
    return " ".join(f"{name}={float(value):g}" if _is_float(value) else f"{name}={value}" for name, value in flags.items())


def _late(runs: list[dict[str, Any]]) -> Iterator[str]:
    """How many trainings had their best epoch last, where most had and it was free to be another."""
    folders = [Path(run["run_dir"]) for run in runs if run["run_dir"] is not None]
    trained = [part for folder in folders for part in _parts_of(folder) if part.get("history")]
    last = sum(part["best"]["epoch"] == len(part["history"]) for part in trained)
    if trained and 2 * last > len(trained) and trained[0].get("selection", {}).get("rule") != "last":
        yield f"{last} of {len(trained)}"


def _cut(runs: list[dict[str, Any]]) -> Iterator[str]:
    """In how many runs some fits of a linear head did not converge."""
    folders = {Path(run["run_dir"]) for run in runs if run["run_dir"] is not None}
    results = [peek_result(folder / RESULT) for folder in folders]
    fitted = [found if isinstance(found, list) else [found] for one in results for kind in (PROBE, SVM) if (found := one.get(kind))]
    cut = sum(any(UNFINISHED in fit for fit in fits) for fits in fitted)
    if cut:
        yield f"{cut} of {len(fitted)}"


def _parts_of(folder: Path) -> list[dict[str, Any]]:
    """The results of what was trained in a run: its own, or of a cross-validated one those of its folds."""
    result = peek_result(folder / RESULT)
    if "folds" not in result:
        return [result]
    if all("epochs" in fold for fold in result["folds"]):
        return [{"best": fold, "history": [None] * fold["epochs"], "selection": result.get("selection", {})} for fold in result["folds"]]
    return [peek_result(fold / RESULT) for fold in sorted(folder.glob("fold-*"))]  # results of before


def _is_float(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
