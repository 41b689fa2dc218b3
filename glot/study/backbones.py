"""A study over several backbones: score against size, each task on a scale of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glot.progress import warn
from glot.report.plots import plot_sizes
from glot.study.drawings import label
from glot.study.statistics import spread
from glot.training.result_file import read_result

if TYPE_CHECKING:
    from glot.study.report import Row

BACKBONE = "model_name_or_path"
SIZES_EXPLAINED = (
    "`backbones.png`: the score against the number of weights in the backbone's files. It is the mean over tasks; on each task 0 is the "
    "lowest and 1 the highest mean of any arm and backbone. Bands are 95 % t-intervals over seeds."
)


def draw_backbones(rows: "list[Row]", cells: list[dict[str, Any]], path: Path) -> bool:
    """Draw it where the grid names several backbones whose sizes are known. Returns whether it was drawn."""
    names = list(dict.fromkeys(row.point[BACKBONE] for row in rows if BACKBONE in row.point))
    sizes = {
        name: size for row, cell in zip(rows, cells, strict=True) if (name := row.point.get(BACKBONE)) and (size := backbone_size(cell))
    }
    if len(names) < 2:
        return False
    unknown = [name for name in names if name not in sizes]
    if unknown:
        warn(f"backbones.png is without {', '.join(unknown)}: no run says how many weights it has")
    known = [row for row in rows if row.point.get(BACKBONE) in sizes]
    if len(sizes) < 2:
        return False
    titles = short_names(list(sizes))
    plot_sizes([(sizes[name], titles[name], arm, spread(values)) for (name, arm), values in normalised(known).items()], path)
    return True


def short_names(names: list[str]) -> dict[str, str]:
    """The last part of each backbone's name, or the last two where that stands for several."""
    parts = {name: [part for part in name.partition("@")[0].split("/") if part not in ("", ".")] for name in names}
    lasts = [own[-1] for own in parts.values()]
    return {name: own[-1] if lasts.count(own[-1]) == 1 else "/".join(own[-2:]) for name, own in parts.items()}


def normalised(rows: "list[Row]") -> dict[tuple[str, str], list[float]]:
    """(backbone, arm) -> per seed, the mean over tasks of the score on each task's scale; seeds and tasks that all of them have."""
    tasks: dict[str, dict[tuple[str, str], dict[int, float]]] = {}
    for row in (row for row in rows if BACKBONE in row.point):
        task = label({key: value for key, value in row.point.items() if key != BACKBONE})
        tasks.setdefault(task, {})[row.point[BACKBONE], row.arm] = row.values
    keys = list(dict.fromkeys(key for scores in tasks.values() for key in scores))
    found: dict[tuple[str, str], list[float]] = {}
    for key in keys:
        own = {task: scores[key] for task, scores in tasks.items() if scores.get(key)}
        if len(own) < len(tasks):
            continue
        seeds = sorted(set.intersection(*({*values} for values in own.values())))
        if seeds:
            found[key] = [sum(_place(tasks[task], values[seed]) for task, values in own.items()) / len(own) for seed in seeds]
    return found


def _place(scores: dict[tuple[str, str], dict[int, float]], value: float) -> float:
    """A score between the lowest and the highest mean at its task."""
    means = [sum(values.values()) / len(values) for values in scores.values() if values]
    low, high = min(means), max(means)
    return (value - low) / (high - low) if high > low else 0.5


def backbone_size(cell: dict[str, Any]) -> int | None:
    """Number of weights that a cell's first finished run wrote down."""
    folder = next((run["run_dir"] for run in cell["runs"] if run["run_dir"] is not None), None)
    return None if folder is None else read_result(Path(folder)).get("backbone", {}).get("weights")
