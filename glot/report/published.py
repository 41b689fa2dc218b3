"""The paper's figures, shown beside ours where backbone, pooler and task agree.

Source: tables of arXiv 2603.03389.
"""

import csv
from functools import cache
from importlib import resources


@cache
def _rows(name: str = "scores.csv") -> list[dict[str, str]]:
    text = resources.files("glot").joinpath(f"resources/{name}").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published_tables() -> list[str]:
    """The tables whose scores are at hand, such as `table 2`."""
    return [f"table {number}" for number in dict.fromkeys(row["table"] for row in _rows())]


def published_costs(task: str) -> tuple[list[str], list[list[str]]] | None:
    """The paper's Tables 9 and 17 as a table: weights, memory, time and the score on a task; None for tasks that they do not have."""
    column = next((name for name in _rows("cost.csv")[0] if name.startswith(f"{task}_")), None)
    if column is None:
        return None
    kept = {"table": "table", "backbone": "backbone", "method": "arm", "trainable_params": "weights", "memory_gb": "memory (GB)"}
    kept |= {"ms_per_batch": "step (ms)", column: column.removeprefix(f"{task}_")}
    return list(kept.values()), [[row[name] or "-" for name in kept] for row in _rows("cost.csv")]


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
