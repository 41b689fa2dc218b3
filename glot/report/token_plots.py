"""Figures of tokens: their weights in a text, and where weight goes over many texts."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glot.report.figures import drawing, subplots

MOST_BARS, MOST_WORDS = 60, 15


@drawing
def plot_tokens(rows: list[tuple[str, list[str], Any, Any]], path: Path) -> None:
    """Weight of each token, and the change of the answer without it, one panel per text and run.

    Args:
        rows: (title, tokens, weights (n,) or None, changes (n,)); of long texts the first `MOST_BARS` tokens.
        path: file of the figure; its ending is the format.
    """
    figure, grid = subplots(len(rows), 1, figsize=(9.6, 2.3 * len(rows)), dpi=150, squeeze=False)
    for axes, (title, tokens, weights, changes) in zip(grid[:, 0], rows, strict=True):
        names, places = [token for token in tokens[:MOST_BARS]], np.arange(min(len(tokens), MOST_BARS))
        if weights is not None:
            axes.bar(places - 0.2, np.asarray(weights)[:MOST_BARS], width=0.4, color="#5b8db8", label="weight")
        axes.bar(places + 0.2, np.nan_to_num(np.asarray(changes))[:MOST_BARS], width=0.4, color="#c23b4b", label="change without it")
        axes.axhline(0, color="#808080", linewidth=0.6)
        axes.set_xticks(places, names, rotation=60, ha="right", fontsize=7)
        axes.tick_params(axis="y", labelsize=7)
        axes.set_title(title, fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False, fontsize=7, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    figure.tight_layout()
    figure.savefig(path)


class WeightShares(NamedTuple):
    """Where the weight of a run goes over many texts.

    Attributes:
        name: of the run.
        shares: what -> share of the weight on it, text by text; empty where there is no such thing.
        words: word, its weight in times of an even token's, and in how many places it stands.
    """

    name: str
    shares: dict[str, list[float]]
    words: list[tuple[str, float, int]]


@drawing
def plot_weight_shares(rows: list[WeightShares], path: Path) -> None:
    """Mean shares of the weight per run, and each run's heaviest words."""
    figure, grid = subplots(1, 1 + len(rows), figsize=(3.6 + 2.8 * len(rows), 4.4), dpi=150, squeeze=False)
    axes = grid[0][0]
    for offset, (name, colour) in enumerate(zip(rows[0].shares, ("#5b8db8", "#e08a3c", "#c23b4b"), strict=False)):
        means = [100 * float(np.mean(row.shares[name])) if row.shares[name] else 0.0 for row in rows]
        if any(means):
            axes.bar(np.arange(len(rows)) + 0.27 * (offset - 1), means, width=0.25, color=colour, label=name)
    axes.set_xticks(range(len(rows)), [row.name for row in rows], rotation=30, ha="right", fontsize=8)
    axes.set_ylabel("share of the weight, %")
    axes.legend(frameon=False, fontsize=7)
    for own, row in zip(grid[0][1:], rows, strict=True):
        words = row.words[:MOST_WORDS][::-1]
        own.barh(range(len(words)), [weight for _, weight, _ in words], color="#8c6d46")
        own.set_yticks(range(len(words)), [word for word, _, _ in words], fontsize=7)
        own.axvline(1, color="#808080", linewidth=0.7, linestyle="--")
        own.set_title(row.name, fontsize=8, loc="left")
        own.set_xlabel("weight, times an even token", fontsize=7)
    for own in grid[0]:
        own.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
