"""The paper's figures, shown beside ours where backbone, pooler and task agree.

Source: tables of arXiv 2603.03389.
"""

import csv
from functools import cache
from importlib import resources


@cache
def _rows() -> list[dict[str, str]]:
    text = resources.files("glot").joinpath("resources/scores.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published_score(backbone: str, pooler: str, task: str, metric: str | None, table: str | None = None) -> float | None:
    """One figure, or None where the paper has none. Backbones match with or without their owner.

    Args:
        backbone: hub id, or its name alone.
        pooler: a value of `--pooling_method`.
        task: a task's name in the table.
        metric: None = the one that the paper reports for the task.
        table: e.g. `table 3`; None = the first table that has the figure.
    """
    number = None if table is None else table.removeprefix("table").strip()
    for row in _rows():
        same = (row["pooler"], row["task"]) == (pooler, task) and metric in (None, row["metric"]) and number in (None, row["table"])
        if same and backbone in (row["backbone"], row["backbone"].split("/")[-1]):
            return float(row["score"])
    return None
