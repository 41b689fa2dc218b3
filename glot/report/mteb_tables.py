"""Tables of MTEB scores: tasks, means per category, and the paper's figures beside ours."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from glot.report.published import published_score
from glot.report.tables import csv_text, markdown

MEAN = "mean"


class Score(Protocol):
    """One task's outcome, as `glot.integrations.mteb` gives it."""

    @property
    def task(self) -> str: ...
    @property
    def category(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def score(self) -> float | None: ...
    @property
    def error(self) -> str | None: ...


def write_mteb_tables(run_dir: Path, scores: Sequence[Score], backbone: str, pooler: str) -> None:
    """Write table.md and table.csv of the tasks scored so far."""
    header, rows = mteb_table(scores, backbone, pooler)
    (run_dir / "table.md").write_text(markdown(header, rows) + "\n", encoding="utf-8")
    (run_dir / "table.csv").write_text(csv_text(header, rows) + "\n", encoding="utf-8")


def mteb_table(scores: Sequence[Score], backbone: str, pooler: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every task, then the mean per category, then the mean of all tasks. Failed tasks are left out of means.

    Scores are multiplied by 100, as on leaderboards.
    """
    found = [(score, published_score(backbone, pooler, score.task, None)) for score in scores]
    rows = []
    for score, figure in found:
        rows.append([score.task, score.category, score.metric, _hundredths(score.score), _hundredths(figure), score.error or ""])
    for category in [*dict.fromkeys(score.category for score in scores), None]:
        inside = [(score.score, figure) for score, figure in found if category in (None, score.category) and score.score is not None]
        if inside:
            ours = math.fsum(own for own, _ in inside) / len(inside)
            figures = [figure for _, figure in inside if figure is not None]
            published = math.fsum(figures) / len(figures) if len(figures) == len(inside) else None
            rows.append(
                [MEAN, category or "all", f"{len(inside)} task{'s' * (len(inside) > 1)}", _hundredths(ours), _hundredths(published), ""]
            )
    return ["task", "category", "metric", "score", "published", "failed"], rows


def _hundredths(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
