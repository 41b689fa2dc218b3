"""What follows the training of a head: a fitted one in its place, and a threshold chosen on held-out rows."""

import numpy as np

from glot.data.tasks import TaskData, TaskSpec, training_labels
from glot.errors import ConfigError, DataError
from glot.nn.model import SentenceModel
from glot.progress import Clock
from glot.settings.choices import PAIR_POOLERS
from glot.settings.config import RunConfig
from glot.settings.effects import has_gradient
from glot.training.checkpoint import fitted_head
from glot.training.evaluate import score
from glot.training.linear_heads import OF_COUNTS, PARTS, best_threshold, fit_head, shift
from glot.training.result import Result, rounded
from glot.training.splits import Loaders, PairLoaders
from glot.words import counted


def check_head(config: RunConfig, task: TaskSpec) -> None:
    """Refuse a head or threshold that the task's labels cannot have.

    Raises:
        ConfigError: see there.
    """
    head, classes = config.head, len(task.labels.names)
    if head.threshold == "heldout" and classes != 2:
        raise ConfigError(f"--threshold=heldout: is for two classes, and the task has {classes or 'scores'}; use argmax")
    if head.threshold == "heldout" and task.metrics[0] not in OF_COUNTS:
        raise ConfigError(
            f"--threshold=heldout: {task.metrics[0]} is the same at every threshold; name one of {', '.join(OF_COUNTS)} first in --metrics"
        )
    if head.head == "svm" and not classes:
        raise ConfigError("--head=svm: takes classes, and the task has scores; use probe")
    of_pairs = config.pooler.pooling_method in PAIR_POOLERS
    if head.head == "probe" and not classes and head.pair_features == "concat" and not of_pairs:
        raise ConfigError("--head=probe: scores of pairs need --pair_features=full or cosine; a sum over both vectors cannot compare them")


def check_head_rows(config: RunConfig, data: TaskData) -> None:
    """Refuse rows that a head or a fold cannot be fitted on.

    Raises:
        ConfigError: a warm-up that ends after the last step.
        DataError: a class is too small, in the training rows of any fold.
    """
    parts, names = training_labels(data, config.data, config.data_seed), data.task.labels.names
    rows, train = min(map(len, parts)), config.train
    if train.warmup_ratio and has_gradient(config) and rows <= train.batch_size and train.epochs == 1:
        raise ConfigError(f"--warmup_ratio={train.warmup_ratio:g}: the only step would have rate 0; add epochs, or leave it out")
    if config.head.head == "trained" or not names:
        return
    counts = np.array([np.bincount(labels.astype(np.int64), minlength=len(names)) for labels in parts])
    fold, index = np.unravel_index(counts.argmin(), counts.shape)
    if counts.min() < PARTS:
        where = f" in fold {fold}" if len(parts) > 1 else ""
        raise DataError(
            f"--head={config.head.head}: class {names[index]!r} has {counted(counts.min(), 'training row')}{where}, "
            f"and {PARTS} are needed to choose the penalty; add rows of it"
        )


def finish_head(config: RunConfig, model: SentenceModel, batches: Loaders | PairLoaders, clock: Clock) -> Result:
    """With `--head=probe` or `svm` a fitted head takes the trained one's place; with `--threshold=heldout` its bias moves.

    Returns:
        what was found, for the result.
    """
    kind, facts = config.head.head, Result()
    if not isinstance(batches, Loaders) or (kind == "trained" and config.head.threshold == "argmax"):
        return facts
    if kind != "trained":
        with clock.phase("evaluate"):
            facts["trained_head"] = rounded(batches.report(model)) if has_gradient(config) else None
        with clock.phase("train"):
            head = fitted_head(config, batches.task, model.pooler).to(batches.device)
            facts[kind] = fit_head(head, kind, *batches.features(model, head), config.data_seed)
        model.head = head
        if config.data.selection == "heldout":  # what studies tune by
            outputs, labels = batches.heldout_outputs(model)
            facts["heldout"] = rounded(score(outputs, labels, batches.task.metrics))
    if config.head.threshold == "heldout":
        margin = best_threshold(*batches.heldout_outputs(model), batches.task.metrics[0])
        shift(model.head.get_parameter("linear.bias"), margin)
        facts["threshold"] = margin
    return facts
