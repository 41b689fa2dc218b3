"""Figures of a study: arms side by side or over an axis, named comparisons with their margins, and learnt weights of layers."""

import re
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from glot.report.figures import shortened
from glot.report.plots import plot_arms, plot_comparisons, plot_layer_weights, plot_lines
from glot.settings.config import read_config
from glot.study.comparisons import Comparison, row_scores, verdicts
from glot.study.statistics import Spread, interval, spread
from glot.training.result_file import CONFIG, PREDICTIONS, read_result

if TYPE_CHECKING:
    from glot.study.report import Row

AXES = ("distractor_ratio", "hidden_layer", "tau")
"""Grid keys that may become the x axis."""
Cells = list[dict[str, Any]]


def label(point: dict[str, str]) -> str:
    """A grid point in words: its values, numbers behind the name of their flag."""
    return " ".join(f"{name.replace('_', ' ')} {value}" if _says_nothing_alone(value) else value for name, value in point.items()) or "-"


def _is_number(text: str) -> bool:
    return text.lstrip("-").replace(".", "", 1).isdecimal()


def _says_nothing_alone(text: str) -> bool:
    """Whether a value needs its flag beside it: `0.5`, `1e-3`, `-1`, `0,2`."""
    return re.fullmatch(r"[-+.,\d]+(e[-+]?\d+)?", text) is not None


def row_spread(row: "Row") -> Spread:
    """The spread of a row's values over its seeds."""
    return spread([row.values[seed] for seed in sorted(row.values)])


def draw(rows: "list[Row]", cells: Cells, floors: dict[str, float], shortcuts: dict[int, dict[str, float]], path: Path) -> bool:
    """Lines over the first key of `AXES` with more than two values, all of them numbers; without one, intervals side by side.

    Returns whether a line has a band over rows, since seeds tell of none.

    Args:
        rows: of the study.
        cells: of the same places.
        floors: point in words -> score of a constant answer.
        shortcuts: place of a cell -> scores of shortcuts.
        path: of the figure.
    """
    axis = next((key for key in AXES if _is_axis([row.point.get(key) for row in rows])), None)
    if axis is None and len(rows) > 1 and not any(row.arm for row in rows) and len({row.metric for row in rows}) == 1:
        known = {"": next(iter(floors.values()))} if len({*floors.values()}) == 1 else None
        plot_arms([("", _brief(row.point), row.metric, row_spread(row)) for row in rows], path, known)
        return False
    if axis is None:
        plot_arms([(label(row.point), row.arm or "run", row.metric, row_spread(row)) for row in rows], path, floors)
        return False

    def place(cell: dict[str, Any]) -> tuple[str, float]:
        """Panel and x."""
        rest = {key: value for key, value in cell["grid"].items() if key != axis}
        return label(rest), float(own_layer(cell) if axis == "hidden_layer" else cell["grid"][axis])

    bands = [band(row, cell) for row, cell in zip(rows, cells, strict=True)]
    lines = [(*place(cell), row.arm, found) for row, cell, found in zip(rows, cells, bands, strict=True)]
    metrics = {place(cell)[0]: row.metric for row, cell in zip(rows, cells, strict=True)}
    grey = {place(cells[at]): scores for at, scores in shortcuts.items()}
    plot_lines(lines, grey, axis, metrics, path)
    return any(found.sd == 0 and found.half_width > 0 for found in bands)  # which only the rows give


def own_layer(cell: dict[str, Any]) -> str:
    """The hidden layer of a cell as its runs resolved it: 6, where the grid says -1 of a model of six."""
    folder = next(Path(run["run_dir"]) for run in cell["runs"] if run["run_dir"] is not None)
    part = folder / "fold-0"  # of a cross-validated run its folds know
    return str(read_config((part if part.is_dir() else folder) / CONFIG)["flags"]["hidden_layer"])


def _brief(point: dict[str, str]) -> str:
    """The values of a grid point, numbers with three digits."""
    return " ".join(f"{float(value):.3g}" if _is_number(value.replace("e-", "")) else value for value in point.values())


def _is_axis(values: list[str | None]) -> bool:
    return len({*values} - {None}) > 2 and all(value is not None and _is_number(value) for value in values)


def band(row: "Row", cell: dict[str, Any]) -> Spread:
    """The spread over seeds; where seeds change nothing, the mean with the 95 % interval of the bootstrap over rows."""
    found = row_spread(row)
    folder = next((Path(run["run_dir"]) for run in cell["runs"] if run["run_dir"] is not None), None)
    if found.sd > 0 or folder is None or not (folder / PREDICTIONS).is_file() or "prediction" not in _header(folder / PREDICTIONS):
        return found
    _, low, high = interval(row_scores(folder / PREDICTIONS, row.metric)[1])
    return Spread(found.mean, 0.0, max(found.n, 2), (high - low) / 2)


def _header(path: Path) -> str:
    with path.open(encoding="utf-8") as stream:
        return stream.readline()


def draw_comparisons(found: list[Comparison], path: Path) -> None:
    """A forest plot: each difference with its intervals over rows and over seeds, its margin in grey, and what it says by colour."""
    rows = [(" - ".join(map(shortened, one.arms)), one, word) for one, (_, word) in zip(found, verdicts(found), strict=True)]
    plot_comparisons(rows, path)


def draw_layer_weights(cells: Cells, path: Path) -> bool:
    """Learnt weights of layers, mean and spread over seeds, for each arm that has them. Returns whether there are any."""
    curves: dict[tuple[str, str], dict[str, Spread]] = {}
    for cell in cells:
        found = [layer_weights(Path(run["run_dir"])) for run in cell["runs"] if run["run_dir"] is not None]
        known = [weights for weights in found if weights]
        if known:
            curves[label(cell["grid"]), cell["arm"] or "run"] = {layer: spread([one[layer] for one in known]) for layer in known[0]}
    if curves:
        plot_layer_weights(curves, path)
    return bool(curves)


def layer_weights(run_dir: Path) -> dict[str, float]:
    """Learnt weights by layer of a run, of a cross-validated one the mean over its folds; empty where it has none."""
    result = read_result(run_dir)
    is_whole = result.get("layer_weights") or "folds" not in result  # results of before left them to the folds
    parts = [result] if is_whole else [read_result(folder) for folder in sorted(run_dir.glob("fold-*"))]
    known = [part["layer_weights"] for part in parts if part.get("layer_weights")]
    return {layer: fmean(weights[layer] for weights in known) for layer in known[0]} if known else {}
