"""Figures of runs and studies."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from glot.report.figures import drawing, log_axis, save_figure, subplots

COLOURS = {
    "cls": "#8c6d46",
    "mean": "#5b8db8",
    "max": "#9a7fc0",
    "adapool": "#e08a3c",
    "glot": "#c23b4b",
    "no graph": "#2b2b2b",
    "K = 0": "#3f9b6c",
    "random": "#d36ba6",
}
"""Colours of poolers and controls, the same in all figures."""


@drawing
def plot_demo(runs: list[dict[str, Any]], shortcuts: dict[str, float], path: Path) -> None:
    """Accuracy by epoch per pooler, with the scores of length alone and of the majority class."""
    figure, axes = subplots(figsize=(7.2, 4.2), dpi=150)
    ends = []
    for run in runs:
        epochs = [epoch["epoch"] for epoch in run["history"]]
        values = [100 * epoch["metrics"]["accuracy"] for epoch in run["history"]]
        axes.plot(epochs, values, marker="o", markersize=4, color=COLOURS.get(run["pooler"]))
        ends.append((values[-1], run["pooler"]))
    last = len(runs[0]["history"])
    for height, (value, name) in zip(_spread([value for value, _ in sorted(ends)], 2.6), sorted(ends), strict=True):
        axes.annotate(
            f"{name}  {value:.1f}", (last, value), (last + 0.15, height), va="center", color=COLOURS.get(name), annotation_clip=False
        )
    for name in ("length alone", "majority class"):
        axes.axhline(100 * shortcuts[name], color="#b0b0b0", linestyle="--", linewidth=1, zorder=0)
        axes.annotate(f"{name}  {100 * shortcuts[name]:.1f}", (1, 100 * shortcuts[name] + 0.6), color="#808080", fontsize=8)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy on 500 texts, %")
    axes.set_title(f"Stress test, 90 % distractors, states of {runs[0]['model']}", loc="left", fontsize=11)
    axes.set_xticks(range(1, last + 1))
    axes.set_ylim(45, 104)
    axes.spines[["top", "right"]].set_visible(False)
    figure.subplots_adjust(left=0.09, right=0.83, top=0.91, bottom=0.12)
    figure.savefig(path)


@drawing
def plot_similarity(cosines: np.ndarray, names: list[str], needles: list[int], pooled: int, caption: str, path: Path) -> None:
    """A heat map of cosine similarities (n, n) of tokens and, in the last `pooled` rows, pooled vectors; as PNG, PDF and SVG.

    Names at the indices `needles` are red, names of pooled vectors blue.
    """
    size = max(6.0, 0.11 * len(names))
    figure, axes = subplots(figsize=(size + 1, size), dpi=150)
    image = axes.imshow(cosines, cmap="viridis", vmin=min(0.0, float(cosines.min())), vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
    axes.set_yticks(range(len(names)), names, fontsize=5)
    edge = len(names) - pooled - 0.5
    axes.axhline(edge, color="white", linewidth=0.8)
    axes.axvline(edge, color="white", linewidth=0.8)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for index, label in enumerate(labels):
            is_pooled = index >= len(names) - pooled
            label.set_color("tab:blue" if is_pooled else "tab:red" if index in needles else "black")
            label.set_fontweight("bold" if is_pooled or index in needles else "normal")
    figure.colorbar(image, ax=axes, shrink=0.7, label="cosine similarity")
    axes.set_title(caption, fontsize=8, loc="left")
    figure.tight_layout()
    save_figure(figure, path)


def _spread(heights: list[float], gap: float) -> list[float]:
    """Ascending label heights, moved up until neighbours are `gap` apart, then all moved down if the last one is too high."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    overshoot = max(0.0, placed[-1] - max(heights[-1], 101))
    return [height - overshoot for height in placed]


RANGES = {"mcc": (-1.0, 1.0), "spearman": (-1.0, 1.0), "pearson": (-1.0, 1.0)}
"""Metric -> smallest and largest value."""
FRACTIONS = ("accuracy", "macro_f1", "f1", "auroc", "mrr_at_10", "recall_at_1")


def _inside(metric: str, value: float) -> float:
    """A bound of an interval, inside the metric's range; metrics of other tools may leave 0 to 1."""
    low, high = RANGES.get(metric, (0.0, 1.0) if metric in FRACTIONS else (-math.inf, math.inf))
    return min(max(value, low), high)


@drawing
def plot_arms(
    rows: list[tuple[str, str, str, Any]],
    path: Path,
    floors: dict[str, float] | None = None,
    dots: dict[tuple[str, str], list[float]] | None = None,
) -> None:
    """Mean and 95 % interval of every arm, one panel per grid point. Panels whose arms differ name them each for itself.

    Args:
        rows: (point, arm, metric, Spread).
        path: file of the figure.
        floors: point -> score of a constant answer, dashed.
        dots: (point, arm) -> scores of its seeds.
    """
    arms_of: dict[str, list[str]] = {}
    for point, arm, _, _ in rows:
        arms_of.setdefault(point, []).append(arm)
    is_shared, tallest = len({*map(tuple, arms_of.values())}) == 1, max(map(len, arms_of.values()), default=1)
    size = (2 + (2.3 if is_shared else 4) * len(arms_of), 1.2 + 0.3 * tallest)
    figure, panels = subplots(1, max(1, len(arms_of)), figsize=size, dpi=150, squeeze=False)
    for axes, (point, arms) in zip(panels[0], arms_of.items(), strict=False):
        for _, arm, metric, found in (row for row in rows if row[0] == point):
            half = found.half_width if found.half_width == found.half_width else 0
            low, high = (abs(_inside(metric, found.mean + sign * half) - found.mean) for sign in (-1, 1))
            colour = COLOURS.get(arm, "#444444")
            seeds = (dots or {}).get((point, arm), [])
            axes.plot(seeds, [arms.index(arm) + 0.22] * len(seeds), ".", color=colour, alpha=0.5, markersize=4)
            axes.errorbar(found.mean, arms.index(arm), xerr=[[low], [high]], fmt="o", color=colour, capsize=2, markersize=4)
            axes.set_xlabel(metric)
        if (floors or {}).get(point) is not None:
            axes.axvline((floors or {})[point], color="#b0b0b0", linestyle="--", linewidth=1, zorder=0)
        axes.set_title(point, fontsize=10)
        axes.set_yticks(range(len(arms)), arms if axes is panels[0][0] or not is_shared else [])
        axes.set_ylim(len(arms) - 0.4, -0.6)
        axes.grid(axis="x", color="#e5e5e5")
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save_figure(figure, path)


@drawing
def plot_graph_density(census: list[Any], tau: float, path: Path) -> None:
    """Density of the token graph and share of isolated tokens against tau, with the chosen tau marked."""
    figure, axes = subplots(figsize=(5.6, 3.6), dpi=150)
    taus = [row.tau for row in census]
    curves = {
        "pairs joined": ([row.density for row in census], "#c23b4b"),
        "isolated tokens": ([row.isolated for row in census], "#5b8db8"),
    }
    for name, (values, colour) in curves.items():
        axes.plot(taus, [100 * value for value in values], marker="o", markersize=3, color=colour, label=name)
    axes.axvline(tau, color="#b0b0b0", linestyle="--", linewidth=1)
    axes.annotate(f"tau = {tau:g}", (tau, 101), color="#808080", fontsize=8, ha="center", annotation_clip=False)
    axes.set_xlabel("tau")
    axes.set_ylabel("%")
    axes.set_ylim(-2, 100)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)


FURTHER_COLOURS = ("#1f6f78", "#b5a642", "#7a4e9e", "#9c3d1f", "#6b8e23", "#808080")


@drawing
def plot_lines(
    rows: list[tuple[str, float, str, Any]],
    shortcuts: dict[tuple[str, float], dict[str, float]],
    axis: str,
    metrics: dict[str, str],
    path: Path,
) -> None:
    """Mean and 95 % band of every arm against x, one panel per combination of the other grid values.

    Args:
        rows: (panel, x, arm, Spread).
        shortcuts: (panel, x) -> scores of shortcut rules, drawn in grey.
        axis: name of the x axis.
        metrics: panel -> name of its metric; panels of one metric share their y axis.
        path: file of the figure.
    """
    panels, arms = list(dict.fromkeys(row[0] for row in rows)), list(dict.fromkeys(row[2] for row in rows))
    looks = looks_of(arms)
    shared, size = len(set(metrics.values())) == 1, (1.6 + 3.4 * len(panels), 3.8)
    figure, grid = subplots(1, len(panels), figsize=size, dpi=150, squeeze=False, sharex=True, sharey=shared)
    for axes, panel in zip(grid[0], panels, strict=True):
        spreads = [row[3] for row in rows if row[0] == panel]
        for arm in arms:
            line = sorted((x, found) for where, x, own, found in rows if (where, own) == (panel, arm))
            if line:
                _plot_line(axes, line, arm, metrics[panel], looks[arm])
        places = sorted(x for where, x in shortcuts if where == panel)
        for name, style in zip(shortcuts[panel, places[0]] if places else (), ("-.", "-", "--", ":"), strict=False):
            values = [shortcuts[panel, x][name] for x in places]
            axes.plot(places, values, color="#b0b0b0", linestyle=style, linewidth=1, zorder=0, label=f"({name})")
        axes.set_title(panel, fontsize=10, loc="left")
        axes.set_xlabel(axis.replace("_", " "))
        if axis == "epoch":
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        if not shared:
            axes.set_ylabel(metrics[panel])
            halves = [found.half_width if found.n > 1 else 0.0 for found in spreads]
            _limit(axes, [found.mean + sign * half for found, half in zip(spreads, halves, strict=True) for sign in (-1, 1)])
    if shared:  # by means alone: with few seeds a band may leave the metric's range
        _limit(grid[0][0], [row[3].mean for row in rows] + [score for scores in shortcuts.values() for score in scores.values()])
        grid[0][0].set_ylabel(metrics[panels[0]])
    if len(arms) > 1 or shortcuts:
        name_all(grid[0])
    figure.tight_layout()
    save_figure(figure, path)


@drawing
def plot_sizes(rows: list[tuple[int, str, str, Any]], path: Path) -> None:
    """Score against the size of the backbone, a line per arm.

    Args:
        rows: (weights, backbone, arm, Spread).
        path: file of the figure.
    """
    figure, axes = subplots(figsize=(6.4, 3.8), dpi=150)
    places = _places_of(sorted({(size, name) for size, name, _, _ in rows}))
    for arm, look in looks_of([row[2] for row in rows]).items():
        line = sorted((places[size, name], found) for size, name, own, found in rows if own == arm)
        _plot_line(axes, line, arm, "accuracy", look)
    log_axis(axes)
    labels = _staggered(axes.get_xlim(), list(places.values()), [f"{name}\n{_count(size)}" for size, name in places])
    axes.set_xticks(list(places.values()), labels, fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel("weights of the backbone")
    axes.set_ylabel("score, normalised per task")
    name_all([axes])
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save_figure(figure, path)


LETTER = 0.016
"""Width of a small letter and its share of the gap between two labels, as a part of a figure's width."""


def _places_of(backbones: list[tuple[int, str]]) -> dict[tuple[int, str], float]:
    """Where backbones stand on a logarithmic axis: at their size, those of nearly equal size a little apart."""
    places: dict[tuple[int, str], float] = {}
    for key in backbones:
        before = max(places.values(), default=0.0)
        places[key] = max(float(key[0]), 1.15 * before)
    return places


def _staggered(limits: tuple[float, float], places: list[float], labels: list[str]) -> list[str]:
    """Labels below a logarithmic axis, those that would run into one before them on further lines."""
    span, ends, found = math.log(limits[1] / limits[0]), list[float](), list[str]()
    for place, label in zip(places, labels, strict=True):
        middle, half = math.log(place / limits[0]) / span, 0.5 * LETTER * max(map(len, label.split("\n")))
        row = next((row for row, end in enumerate(ends) if middle - half > end), len(ends))
        ends[row:] = [middle + half, *ends[row + 1 :]]
        found.append("\n" * row * (label.count("\n") + 1) + label)
    return found


def _count(size: int) -> str:
    """A number of weights in words: 22.7 million, 18,800."""
    return f"{size / 1e6:,.3g} million" if size >= 1e6 else f"{size:,}"


def looks_of(arms: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm, no two alike up to 24 arms beside those of `COLOURS`."""
    free = ((colour, marker) for marker in itertools.cycle("osv^") for colour in FURTHER_COLOURS)
    return {arm: (COLOURS[arm], "o") if arm in COLOURS else next(free) for arm in dict.fromkeys(arms)}


def name_all(panels: Any) -> None:
    """One legend for all panels, to the right of the last: an arm may be in some of them alone."""
    known = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[-1].legend(known.values(), known.keys(), frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _plot_line(axes: Any, line: list[tuple[float, Any]], arm: str, metric: str, look: tuple[str, str]) -> None:
    """One arm with its band."""
    colour, marker = look
    name = f" {arm}" if arm.startswith("_") else arm or "run"  # matplotlib leaves names with an underscore out of legends
    xs, means = [x for x, _ in line], [found.mean for _, found in line]
    half = [found.half_width if found.n > 1 else 0.0 for _, found in line]
    axes.plot(xs, means, marker=marker, markersize=3.5, color=colour, label=name, zorder=3)
    low, high = ([_inside(metric, mean + sign * width) for mean, width in zip(means, half, strict=True)] for sign in (-1, 1))
    axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0, zorder=1)


def _limit(axes: Any, shown: list[float]) -> None:
    """Y limits around some values."""
    margin = 0.15 * (max(shown) - min(shown)) or 0.05
    axes.set_ylim(min(shown) - margin, max(shown) + margin)


VERDICT_COLOURS = {"different": "#c23b4b", "equal within the margin": "#3f9b6c", "cannot tell": "#808080"}


@drawing
def plot_comparisons(rows: list[tuple[str, Any, str]], path: Path) -> None:
    """A forest plot, one panel per grid point.

    Args:
        rows: (name, comparison with difference, over_rows, over_seeds, margin, where and metric, verdict).
        path: file of the figure.
    """
    panels = list(dict.fromkeys((one.where, one.metric) for _, one, _ in rows))
    names = {panel: [name for name, one, _ in rows if (one.where, one.metric) == panel] for panel in panels}
    heights = [1.0 + len(names[panel]) for panel in panels]
    tall = 0.7 + 0.3 * sum(heights) + 0.35 * len(panels)
    figure, grid = subplots(len(panels), 1, figsize=(8.6, tall), dpi=150, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        own = [(one, word) for _, one, word in rows if (one.where, one.metric) == panel]
        for place, (one, word) in enumerate(own):
            colour = VERDICT_COLOURS[word]
            axes.plot(one.over_rows, [place, place], color=colour, linewidth=1.4)
            if one.over_seeds == one.over_seeds:
                ends = [one.difference - one.over_seeds, one.difference + one.over_seeds]
                axes.plot(ends, [place, place], color=colour, linewidth=4, alpha=0.35, solid_capstyle="butt")
            axes.plot(one.difference, place, marker="o", markersize=4, color=colour)
        margin = own[0][0].margin
        if margin is not None:
            axes.axvspan(-margin, margin, color="#eeeeee", zorder=0)
        axes.axvline(0, color="#b0b0b0", linewidth=0.8, zorder=1)
        axes.set_yticks(range(len(own)), names[panel], fontsize=8)
        axes.set_ylim(len(own) - 0.4, -0.6)
        axes.set_title(f"{panel[0]}, {panel[1]}".removeprefix("-, "), fontsize=9, loc="left")
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [grid[0, 0].plot([], [], marker="o", linestyle="", color=colour, label=word)[0] for word, colour in VERDICT_COLOURS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=8)
    grid[-1, 0].set_xlabel("difference; thin: 95 % over rows, thick: over seeds, grey: margin", fontsize=8)
    figure.tight_layout(rect=(0, 0.3 / tall, 1, 1))
    save_figure(figure, path)


@drawing
def plot_layer_weights(curves: dict[tuple[str, str], dict[str, Any]], path: Path) -> None:
    """Learnt weight of each hidden layer, one panel per grid point, one line per arm; the dashed line is an even weight.

    Args:
        curves: (point, arm) -> layer -> Spread over seeds.
        path: file of the figure.
    """
    points, looks = list(dict.fromkeys(point for point, _ in curves)), looks_of([arm for _, arm in curves])
    figure, grid = subplots(1, len(points), figsize=(1.6 + 3.2 * len(points), 3.4), dpi=150, squeeze=False, sharey=True)
    for axes, point in zip(grid[0], points, strict=True):
        for (where, arm), weights in curves.items():
            if where == point:
                line = [(float(layer), found) for layer, found in weights.items()]
                _plot_line(axes, line, arm, "share", looks[arm])
                axes.axhline(1 / len(weights), color="#b0b0b0", linestyle="--", linewidth=0.8, zorder=0)
        axes.set_title(point, fontsize=10, loc="left")
        axes.set_xlabel("hidden layer")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("weight")
    name_all(grid[0])
    figure.tight_layout()
    save_figure(figure, path)
