"""The paper's figures, to stand beside ours where backbone, pooler and task agree. Source: tables of arXiv 2603.03389."""

import csv
from functools import cache
from importlib import resources


@cache
def _rows() -> list[dict[str, str]]:
    text = resources.files("glot").joinpath("resources/scores.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published_score(backbone: str, pooler: str, task: str, metric: str | None, table: str | None = None) -> float | None:
    """One figure, or None where the paper has none. Backbones match without their owner.

    `metric` None is whatever the paper reports for the task, `table` None the first table that has it (else e.g. `table 3`).
    """
    number = None if table is None else table.removeprefix("table").strip()
    for row in _rows():
        same = (row["pooler"], row["task"]) == (pooler, task) and metric in (None, row["metric"]) and number in (None, row["table"])
        if same and backbone in (row["backbone"], row["backbone"].split("/")[-1]):
            return float(row["score"])
    return None
