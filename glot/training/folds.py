"""Cross-validation: the results of the folds of one run become the result of the run."""

from pathlib import Path
from statistics import fmean

import numpy as np

from glot.data.folds import assign_folds
from glot.data.tasks import TaskData, targets
from glot.settings.config import RunConfig, read_config
from glot.training.checkpoint import write_config
from glot.training.evaluate import score
from glot.training.linear_heads import OF_COUNTS
from glot.training.metrics import floors
from glot.training.origin import command_of
from glot.training.predictions import read_outputs, write_predictions
from glot.training.result import Result, rounded
from glot.training.result_file import CONFIG, PREDICTIONS, write_result

SUMMED = ("load", "encode", "train", "evaluate")
COMMON = (
    *("task", "task_name", "model", "pooler", "seed", "data_seed", "selection", "labels", "trainable_params"),
    *("store", "backbone", "versions"),
)
"""Fields of a fold's result that are the run's too."""


OF_EACH = ("probe", "svm", "threshold", "heldout")
"""Fields of a fold's result that the run lists, one for each fold."""


def fold_configs(config: RunConfig, folder: Path) -> list[RunConfig]:
    """The run of each fold, in folders `fold-<n>` under the run's."""
    here = {"output_dir": str(folder), "seeds": None, "stack_seeds": False, "data_seed": config.data_seed, "order_seed": config.order_seed}
    return [config.with_values(**here, fold=fold, run_name=f"fold-{fold}") for fold in range(config.data.folds)]


def join_folds(config: RunConfig, folder: Path, fingerprint: str, data: TaskData, folds: list[Result]) -> Result:
    """Write the predictions of all rows, each by the model that did not see it, and the result of the run.

    Args:
        config: of the run.
        folder: of the run.
        fingerprint: of the run.
        data: the pool, as `--folds` without `--fold` reads it.
        folds: the results of the folds, in order.
    """
    task, (pool,) = data.task, data.reported
    of_row = assign_folds(pool, config.data.folds, config.data_seed, bool(task.labels.names))
    outputs = np.empty((len(pool), task.num_labels) if task.labels.names else len(pool), dtype=np.float32)
    for fold, result in enumerate(folds):
        outputs[of_row == fold] = read_outputs(Path(result["run_dir"]) / PREDICTIONS, task.num_labels)
    write_predictions(folder / PREDICTIONS, pool, outputs, task.labels)
    labels = targets(task, pool, config.data.label_scale)
    found = floors(pool.labels, bool(task.labels.names))
    first = folds[0]
    resolved = read_config(Path(first["run_dir"]) / CONFIG)["resolved"]
    write_config(folder, config, {**resolved, "data": data.sha256})
    epoch = int(np.median([one["best"]["epoch"] for one in folds]))
    scores = rounded(score(outputs, labels, task.metrics) | _ranking_scores(folds, of_row, outputs, labels, task.metrics))
    result = {name: first[name] for name in COMMON} | {
        "best": {"epoch": epoch, "metrics": scores},
        "last": None,
        "history": [],
        "folds": [{**one["best"], "epochs": len(one["history"])} for one in folds],
        "select_by": f"in each of {len(folds)} folds: {first['select_by']}",
        "floor": {name: found[name] for name in task.metrics},
        "rows": {pool.split: len(pool)},
        "seconds": {phase: round(sum(one["seconds"][phase] for one in folds), 3) for phase in SUMMED},
        "notes": list(dict.fromkeys(note for one in folds for note in one["notes"])),
        "made_by": first["made_by"] | {"command": command_of(config)},
        "run_dir": str(folder),
        "fingerprint": fingerprint,
    }
    heads = [one["trained_head"] for one in folds if one.get("trained_head")]
    if heads:
        result["trained_head"] = {
            name: fmean(one[name] for one in heads) for name in heads[0] if all(one[name] is not None for one in heads)
        }
    result |= {name: [one[name] for one in folds] for name in OF_EACH if name in first}
    weights = [one["layer_weights"] for one in folds if "layer_weights" in one]
    if weights:
        result["layer_weights"] = {layer: round(fmean(one[layer] for one in weights), 6) for layer in weights[0]}
    write_result(folder, result)
    return result


def _ranking_scores(
    folds: list[Result], of_row: np.ndarray, outputs: np.ndarray, labels: np.ndarray, metrics: tuple[str, ...]
) -> dict[str, float]:
    """Metrics that no threshold moves, of the outputs as they were before each fold moved them by a threshold of its own."""
    ranking = tuple(name for name in metrics if name not in OF_COUNTS)
    if "threshold" not in folds[0] or not ranking:
        return {}
    moved = np.array([one["threshold"] for one in folds])[of_row]
    return score(outputs + np.stack([np.zeros_like(moved), moved], 1), labels, ranking)
