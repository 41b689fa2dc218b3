"""Finished runs under a folder, as a table."""

import re
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from glot.cache import read_facts
from glot.errors import CheckpointError, ConfigError, nearest
from glot.progress import warn
from glot.report.tables import markdown
from glot.settings.choices import short_name
from glot.training.folders import RESULT, find_results
from glot.training.result_file import main_score, peek_result

COLUMNS = ("date", "task", "model", "pooler", "seed", "metric", "score", "floor", "folder")


class Listed(NamedTuple):
    """One finished run as a row of the table; fields are `COLUMNS`."""

    date: str
    task: str
    model: str
    pooler: str
    seed: str
    metric: str
    score: str
    floor: str
    folder: str


def list_runs(root: Path, sort: str = "date") -> list[Listed]:
    """The finished runs under a folder, those of seeds and studies too.

    Raises:
        ConfigError: no such folder, or no such column to sort by.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; give one that holds run folders, such as runs")
    if sort not in COLUMNS:
        raise ConfigError(f"--sort={sort}: no such column{nearest(sort, COLUMNS)}; there are {', '.join(COLUMNS)}")
    found = [row for path in find_results(root) if (row := _listed(path, root)) is not None]
    place = COLUMNS.index(sort)
    return sorted(found, key=lambda row: (_as_number(row[place]), row[place]), reverse=sort == "score")


def report_runs(root: Path) -> str:
    """Runs under a folder that differ in nothing but their seed, as one row each: mean, sd and number of seeds.

    Raises:
        ConfigError: no such folder, or no finished run in it.
        CheckpointError: see `refuse_damaged`.
    """
    refuse_damaged(root)
    groups: dict[tuple[str, str, str, str, str], list[Listed]] = {}
    for row in list_runs(root):
        folder = Path(row.folder)
        place = str(folder.parent) if re.fullmatch(r"seed-\d+", folder.name) else row.folder  # and not seed-0-again
        groups.setdefault((place, row.task, row.model, row.pooler, row.metric), []).append(row)
    if not groups:
        raise ConfigError(f"{root}: holds neither study.json nor a finished run; give a study's folder, or one that holds run folders")
    rows = []
    for (place, *names, metric), found in groups.items():
        values = [float(row.score) for row in found if row.score]
        sd = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
        mean = f"{statistics.mean(values):.4f}" if values else "-"
        rows.append([place, *names, metric, mean, sd, str(len(values)), found[0].floor])
    return markdown(["folder", "task", "model", "pooler", "metric", "mean", "sd", "n", "floor"], rows)


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _listed(path: Path, root: Path) -> Listed | None:
    """A row; None of a folder of seeds, whose runs have rows of their own, of a fold, and of a damaged file."""
    result = _peek(path)
    if result is None:
        return None
    metric, value = main_score(result)
    floor = result.get("floor", {}).get(metric)
    return Listed(
        time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime)),
        str(result.get("task_name", result["task"])),
        Path(str(result["model"])).name,
        short_name(str(result["pooler"])) + (f" ({result['finetuned']})" if result.get("finetuned") else ""),
        str(result["seed"]),
        metric,
        "" if value is None else f"{value:.4f}",
        "" if floor is None else f"{floor:.4f}",
        str(path.parent.relative_to(root.parent) if root.name else path.parent),
    )


def refuse_damaged(folder: Path) -> None:
    """Refuse a folder that is itself a run with a damaged result; among several runs such a one is said and left out.

    Raises:
        CheckpointError: it is.
    """
    if (folder / RESULT).is_file():
        peek_result(folder / RESULT)


def is_listed(path: Path) -> bool:
    """Whether a `result.json` is that of a run with a row of its own; a damaged one is said."""
    return _peek(path) is not None


def _peek(path: Path) -> dict[str, Any] | None:
    try:
        result = peek_result(path)
    except CheckpointError as error:
        warn(str(error))
        return None
    of_fold = path.parent.name.startswith("fold-") and "folds" in read_facts(path.parent.parent / RESULT)
    is_ours = {"task", "model", "pooler", "seed"} <= result.keys()  # another tool may write a file of this name
    best, scores = result.get("best"), result.get("scores")
    has_scores = (isinstance(scores, dict) and bool(scores)) or (isinstance(best, dict) and bool(best.get("metrics")))
    return result if is_ours and has_scores and not of_fold else None
