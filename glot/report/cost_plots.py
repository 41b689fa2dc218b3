"""Figures of what runs cost: time per training step, and score against seconds."""

from pathlib import Path

from glot.report.figures import drawing, log_axis, save_figure, subplots
from glot.report.plots import looks_of, name_all


@drawing
def plot_cost(rows: list[tuple[str, float | None, float | None]], path: Path) -> None:
    """Milliseconds per training step of each arm, on a logarithmic axis.

    Args:
        rows: (arm, seconds on stored states, seconds with the backbone's pass); None = no such step.
        path: file of the figure.
    """
    shown = [row for row in rows if row[1] is not None or row[2] is not None]
    figure, axes = subplots(figsize=(7.2, 1.3 + 0.5 * len(shown)), dpi=150)
    for place, (_, stored, live) in enumerate(shown):
        for value, offset, colour, name in (
            (stored, -0.18, "#5b8db8", "on stored states"),
            (live, 0.18, "#e08a3c", "with the backbone's pass"),
        ):
            if value is not None:
                axes.barh(place + offset, 1000 * value, height=0.34, color=colour, label=name)
                axes.annotate(f" {1000 * value:.1f}", (1000 * value, place + offset), va="center", fontsize=8)
    log_axis(axes)
    axes.set_yticks(range(len(shown)), [name for name, _, _ in shown])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds per training step")
    axes.spines[["top", "right"]].set_visible(False)
    named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(named.values(), named.keys(), loc="upper center", ncols=2, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    save_figure(figure, path)


@drawing
def plot_score_by_seconds(rows: list[tuple[str, str, list[tuple[float, float]]]], path: Path) -> None:
    """Score on held-out rows against seconds since the beginning, one point per epoch.

    Args:
        rows: (arm, metric, (seconds, score) per epoch); arms without epochs are left out.
        path: file of the figure.
    """
    figure, axes = subplots(figsize=(7.2, 4.2), dpi=150)
    looks = looks_of([arm for arm, _, _ in rows])
    for arm, _, curve in (row for row in rows if row[2]):
        seconds, scores = zip(*curve, strict=True)
        colour, marker = looks[arm]
        axes.plot(seconds, scores, marker=marker, markersize=4, color=colour, label=arm)
    log_axis(axes)
    axes.set_xlabel("seconds: encoding, where states are stored, and training")
    axes.set_ylabel(f"{rows[0][1]} on held-out rows")
    axes.grid(color="#e5e5e5")
    axes.spines[["top", "right"]].set_visible(False)
    name_all([axes])
    figure.tight_layout()
    save_figure(figure, path)
