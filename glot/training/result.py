"""The result object: what was trained on what, what came out, and what selected it."""

import math
from typing import Any

import numpy as np
import torch

from glot.data.tasks import TaskSpec
from glot.settings.config import RunConfig, versions
from glot.training.metrics import finite
from glot.training.origin import origin
from glot.types import EpochResult, FitResult

Result = dict[str, Any]


def selection_facts(config: RunConfig, task: TaskSpec) -> Result:
    """What picked the reported epoch: rule, metrics (their mean counts), and the share of training rows that was held out for it."""
    rule = config.data.selection
    metrics = {"best": task.select_by, "last": (), "heldout": task.metrics[:1]}[rule]
    share = {"heldout_fraction": config.data.heldout_fraction, "data_seed": config.data_seed} if rule == "heldout" else {}
    return {"rule": rule, "metrics": list(metrics), **share}


def selection_in_words(config: RunConfig, task: TaskSpec, reported: list[str], fitted: FitResult) -> str:
    """The same as a sentence part."""
    data, names = config.data, selection_facts(config, task)["metrics"]
    if not fitted.history:
        kept_out = ", without the rows held out, which score it (`heldout`)" if data.selection == "heldout" else ""
        return f"nothing to select: the head is fitted once{kept_out}"
    if names and not any(math.isfinite(sum(epoch.metrics[name] for name in names)) for epoch in fitted.history):
        return f"last epoch: none has a number for {' + '.join(names)} on the rows that select"
    if data.selection == "heldout" and data.task == "embedding":
        return f"best epoch by {task.metrics[0]} on the held-out rows, which are also the reported ones"
    sentences = {
        "best": f"best epoch by {' + '.join(task.select_by)} on the reported split ({reported[0]})",
        "last": "last epoch",
        "heldout": f"best epoch by {task.metrics[0]} on {data.heldout_fraction:g} of the training rows, "
        f"held out with data seed {config.data_seed}",
    }
    return sentences[data.selection]


def epoch_entry(epoch: EpochResult) -> Result:
    """One epoch of `history`."""
    return {
        "epoch": epoch.epoch,
        "train_loss": finite(epoch.train_loss),
        "metrics": rounded(epoch.metrics),
        "seconds": {phase: round(seconds, 3) for phase, seconds in epoch.seconds.items()},
    }


def rounded(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as JSON holds them: null where there is no number."""
    return {name: finite(value) for name, value in metrics.items()}


def make_result(config: RunConfig, task: TaskSpec, fitted: FitResult, scores: dict[str, float], seconds: dict[str, float]) -> Result:
    """What follows from configuration and training; `scores` are those of the selected epoch on the reported split."""
    heldout = config.data.selection == "heldout"
    history = [epoch_entry(epoch) for epoch in fitted.history]
    spent = {phase: sum(epoch.seconds[phase] for epoch in fitted.history) for phase in ("train", "evaluate")}
    totals = {phase: round(value + spent.get(phase, 0.0), 3) for phase, value in seconds.items()}
    return {
        "task": config.data.task,
        "task_name": config.files.task_name or config.data.task,
        "model": config.backbone.model_name_or_path,
        "pooler": config.pooler.pooling_method,
        "seed": config.train.seed,
        "data_seed": config.data_seed,
        "best": {"epoch": fitted.best.epoch, "metrics": rounded(scores)},
        "last": None if heldout or not history else {"epoch": fitted.last.epoch, "metrics": rounded(fitted.last.metrics)},
        "history": history,
        "seconds": totals,
        "versions": versions(),
    }


def make_mteb_result(
    config: RunConfig, scores: dict[str, float], failed: dict[str, str], revision: str, seconds: dict[str, float], device: torch.device
) -> Result:
    """The result object of `--task=mteb`: main scores and reasons by task in place of best and last."""
    return {
        "task": "mteb",
        "model": config.backbone.model_name_or_path,
        "pooler": config.pooler.pooling_method,
        "seed": config.train.seed,
        "data_seed": config.data_seed,
        "select_by": "nothing is trained",
        "scores": scores,
        "failed": failed,
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "fingerprint": revision,
        "made_by": origin(config, device),
    }


def summarise(runs: list[Result]) -> dict[str, dict[str, float | int | None]]:
    """Mean and standard deviation (n - 1; None of one) over runs of each metric of the selected epoch, where it is a number."""
    summary: dict[str, dict[str, float | int | None]] = {}
    for metric in runs[0]["best"]["metrics"]:
        values = [run["best"]["metrics"][metric] for run in runs if run["best"]["metrics"][metric] is not None]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        summary[metric] = {"mean": float(np.mean(values)), "sd": spread, "n": len(values)} if values else {"mean": None, "sd": None, "n": 0}
    return summary
