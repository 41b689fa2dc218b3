"""The table of tasks: a row says everything in which one task differs from another."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from glot.data import StressOptions, draw_rows, generate_stress, hold_out, load_splits
from glot.data.custom import CUSTOM, EVALUATION, CustomSpec, load_custom
from glot.data.folds import assign_folds
from glot.data.labels import CLASS, LABEL_SCALES, NONE, SCORE, LabelFacts
from glot.errors import ConfigError, DataError
from glot.nn.heads import InBatchHead, PairHead, SingleHead, similarity_head
from glot.nn.losses import cosine_mse, cross_entropy, symmetric_info_nce
from glot.prompts import NO_PROMPTS, UsedPrompts
from glot.settings.data_sections import DataConfig, StressConfig
from glot.types import Examples, texts_sha256
from glot.words import counted


class TaskSpec(NamedTuple):
    """One task.

    Attributes:
        head: class of the head.
        labels: names of the classes, or the range of the scores.
        loss: (output, labels) -> scalar.
        metrics: names of `glot.training.metrics.METRICS`; the first is the reported one.
        select_by: the metrics whose mean picks the best epoch (the release's habit).
        eval_splits: split -> suffix of its metric names.
        subset_rows: rows that `--num_train_samples=subset` takes; None = all.
        loss_flags: flags that the loss takes besides, under their names.
        is_symmetric: whether the order of a pair's texts means nothing.
        patience: steps without a lower loss after which the learning rate falls to a tenth; None = it stays.
    """

    head: Callable[..., nn.Module]
    labels: LabelFacts
    loss: Callable[..., Tensor]
    metrics: tuple[str, ...]
    select_by: tuple[str, ...]
    eval_splits: dict[str, str]
    subset_rows: int | None = None
    loss_flags: tuple[str, ...] = ()
    patience: int | None = None
    is_symmetric: bool = False

    @property
    def num_labels(self) -> int:
        """C; 1 for scores, 0 without labels."""
        return len(self.labels.names) or (1 if self.labels.kind == SCORE else 0)

    @property
    def num_texts(self) -> int:
        """Texts of a row: 1 or 2."""
        return 1 if self.head is SingleHead else 2

    @property
    def head_flags(self) -> tuple[str, ...]:
        """Flags that the head's constructor takes besides, under their names."""
        return HEAD_FLAGS[self.head]


HEAD_FLAGS: dict[Callable[..., nn.Module], tuple[str, ...]] = {
    SingleHead: ("dropout",),
    PairHead: ("pair_features", "dropout"),
    similarity_head: ("pair_features", "dropout"),
    InBatchHead: ("contrastive_normalize",),
}


def _classes(*names: str) -> LabelFacts:
    return LabelFacts(CLASS, names)


ACCURACY = ("accuracy",)
VALIDATION = {"validation": ""}
MATCHED = {"validation_matched": "", "validation_mismatched": "_mm"}
SUBSET = 20_000
STRESS_ROWS = 500
"""Generated evaluation rows where `--num_eval_samples` says nothing."""
RANKED = ("auroc", "average_precision")
"""Metrics of two classes that do not depend on a threshold."""
CLASS_METRICS, TWO_CLASS_METRICS, SCORE_METRICS = ("accuracy", "macro_f1"), ("f1", "mcc", *RANKED), ("spearman", "pearson")
MCC_FIRST, F1_FIRST = ("mcc", "accuracy", *RANKED), ("f1", "accuracy", *RANKED)
WITH_MCC, WITH_F1 = ("accuracy", "mcc", *RANKED), ("accuracy", "f1", *RANKED)

TASKS: dict[str, TaskSpec] = {
    "cola": TaskSpec(SingleHead, _classes("unacceptable", "acceptable"), cross_entropy, MCC_FIRST, ACCURACY, VALIDATION),
    "sst2": TaskSpec(SingleHead, _classes("negative", "positive"), cross_entropy, WITH_MCC, ACCURACY, VALIDATION),
    "stsb": TaskSpec(similarity_head, LabelFacts(SCORE, (), 0, 5), cosine_mse, SCORE_METRICS, SCORE_METRICS, VALIDATION, is_symmetric=True),
    "mrpc": TaskSpec(PairHead, _classes("not_equivalent", "equivalent"), cross_entropy, F1_FIRST, ACCURACY, VALIDATION, is_symmetric=True),
    "qqp": TaskSpec(
        PairHead, _classes("not_duplicate", "duplicate"), cross_entropy, F1_FIRST, ACCURACY, VALIDATION, SUBSET, is_symmetric=True
    ),
    "mnli": TaskSpec(PairHead, _classes("entailment", "neutral", "contradiction"), cross_entropy, ACCURACY, ACCURACY, MATCHED, SUBSET),
    "qnli": TaskSpec(PairHead, _classes("entailment", "not_entailment"), cross_entropy, WITH_F1, ACCURACY, VALIDATION, SUBSET),
    "rte": TaskSpec(PairHead, _classes("entailment", "not_entailment"), cross_entropy, WITH_F1, ACCURACY, VALIDATION),
    "wnli": TaskSpec(PairHead, _classes("not_entailment", "entailment"), cross_entropy, WITH_F1, ACCURACY, VALIDATION),
    "imdb": TaskSpec(SingleHead, _classes("neg", "pos"), cross_entropy, WITH_MCC, ACCURACY, {"test": ""}),
    "stress": TaskSpec(SingleHead, _classes("modified", "unmodified"), cross_entropy, ("accuracy", *RANKED), ACCURACY, VALIDATION, 2_000),
    "embedding": TaskSpec(
        InBatchHead,
        LabelFacts(NONE),
        symmetric_info_nce,
        ("mrr_at_10", "recall_at_1", "loss"),
        ("mrr_at_10",),
        {"heldout": ""},
        SUBSET,
        loss_flags=("temperature",),
        patience=50,
    ),
    CUSTOM: TaskSpec(SingleHead, LabelFacts(NONE), cross_entropy, (), (), {EVALUATION: ""}),
}
"""`--task` -> row. A new task is a row here and, at most, a loader in `glot/data`. The row of a custom task is made of its data."""

FORMS: dict[tuple[str, int], tuple[Callable[..., nn.Module], Callable[..., Tensor]]] = {
    (CLASS, 1): (SingleHead, cross_entropy),
    (CLASS, 2): (PairHead, cross_entropy),
    (SCORE, 2): (similarity_head, cosine_mse),
}
"""Kind of the labels, number of texts -> head and loss of a custom task."""


def custom_task(labels: LabelFacts, num_texts: int, metrics: tuple[str, ...]) -> TaskSpec:
    """The row of a custom task.

    Raises:
        ConfigError: a metric that such labels do not have.
    """
    head, loss = FORMS[labels.kind, num_texts]
    allowed = metrics_of(labels)
    wrong = next((name for name in metrics if name not in allowed), None)
    if wrong is not None:
        what = f"{len(labels.names)} classes" if labels.names else "scores"
        raise ConfigError(f"--metrics={','.join(metrics)}: {wrong} cannot be had of {what}; allowed: {', '.join(allowed)}")
    chosen = metrics or allowed
    return TaskSpec(head, labels, loss, chosen, chosen[:1], {EVALUATION: ""})


def metrics_of(labels: LabelFacts) -> tuple[str, ...]:
    """The metrics that such labels have, the default ones in order."""
    if labels.kind == SCORE:
        return SCORE_METRICS
    return (*CLASS_METRICS, *TWO_CLASS_METRICS) if len(labels.names) == 2 else CLASS_METRICS


def training_loss(task: TaskSpec, flags: dict[str, Any]) -> Callable[..., Tensor]:
    """The loss of a task, (output, labels) -> scalar, with the flags that it takes."""
    return partial(task.loss, **{name: flags[name] for name in task.loss_flags})


def training_rows(task: TaskSpec, num_train_samples: str) -> int | None:
    """`subset`, `full` or a number -> how many rows, None = all."""
    words = {"subset": task.subset_rows, "full": None}
    return words[num_train_samples] if num_train_samples in words else int(num_train_samples)


def check_labels(task: TaskSpec, examples: Examples) -> None:
    """Refuse labels that are no class of the task, or lie outside its range.

    Raises:
        DataError: the first such row.
    """
    facts, found = task.labels, examples.labels
    known = np.isin(found, np.arange(task.num_labels)) if facts.names else (found >= facts.low) & (found <= facts.high)
    wrong = np.flatnonzero(~known)
    if len(wrong):
        allowed = f"classes 0 to {task.num_labels - 1}" if facts.names else f"scores from {facts.low:g} to {facts.high:g}"
        raise DataError(f"{examples.where(wrong[0])} has label {found[wrong[0]]:g}; the task has {allowed}")


def targets(task: TaskSpec, examples: Examples, label_scale: str) -> np.ndarray:
    """Labels as the loss wants them: int64 classes, or float32 cosines for scores."""
    if task.labels.names:
        return examples.labels.astype(np.int64)
    return LABEL_SCALES[label_scale](examples.labels, task.labels.low, task.labels.high).astype(np.float32)


@dataclass(frozen=True)
class TaskData:
    """The splits of a run: training rows, what every epoch is scored on, and what is reported in the end (often the same)."""

    train: Examples
    watched: list[Examples]
    reported: list[Examples]
    notes: list[str]
    drawn_from: Examples
    """The training rows before any were held out: what is stored does not depend on which were."""
    task: TaskSpec
    used: UsedPrompts = NO_PROMPTS

    @property
    def splits(self) -> list[Examples]:
        """All rows, in the order in which their texts are stored."""
        return [self.drawn_from, *self.reported]

    @cached_property
    def sha256(self) -> str:
        """One hash over all rows: texts, labels and the split they are in."""
        digest = hashlib.sha256(self.used.key.encode())
        for split in [*self.splits, self.train]:
            digest.update(split.split.encode() + split.labels.tobytes())
            for column in split.columns:
                digest.update(texts_sha256(column).encode())
        return digest.hexdigest()


def load_task_data(name: str, data: DataConfig, stress: StressConfig, seq_len: int, data_seed: int) -> TaskData:
    """Read or generate the rows of a task, and hold out a share of the training rows where asked.

    Raises:
        DataError: see `glot.data`.
    """
    task, cut = TASKS[name], data.num_eval_samples
    wanted = training_rows(task, data.num_train_samples)
    if name == "stress":
        options = StressOptions(seq_len, stress.distractor_ratio, stress.signal_position, stress.relational_distance)
        count = wanted or task.subset_rows or 0
        train, evaluation = generate_stress(stress.stress_variant, options, count, cut or STRESS_ROWS, data_seed)
        reported = [evaluation]
    else:
        splits = [data.eval_split] if data.eval_split else list(task.eval_splits)
        splits = fold_splits(name, data.data_dir) if data.folds else splits
        train, reported = load_splits(name, "train", splits, data.data_dir, wanted)
        reported = [spaced_rows(split, cut) for split in reported]
    for split in [train, *reported]:
        check_labels(task, split)
    if task.labels.names and len(set(train.labels.tolist())) < 2:
        # IMDB's file has one class after the other, so its first rows are all of one
        raise DataError(
            f"--num_train_samples={data.num_train_samples}: the first {counted(len(train), 'row')} of {name} "
            f"all have label {train.labels[0]:g}; take more"
        )
    drawn = TaskData(train, reported, reported, _short(train, wanted), train, task)
    return hold_out_for_selection(in_folds(drawn, data, data_seed), data, data_seed)


def shared_rows(train: Examples, others: Examples) -> list[str]:
    """A warning where rows of one split are rows of the training split too: what they score is not new."""
    known = set(zip(*train.columns, strict=True))
    twice = sum(row in known for row in zip(*others.columns, strict=True))
    what = "a text that is a training row's too" if len(train.columns) == 1 else "a pair of texts that is a training row's too"
    return [f"warning: {twice:,} of {counted(len(others), others.split + ' row')} have {what}"] if twice else []


def load_custom_data(spec: CustomSpec, metrics: tuple[str, ...], data: DataConfig, data_seed: int) -> TaskData:
    """Read a user's rows; without an evaluation file, keep a share of the training rows out.

    Raises:
        DataError: see `load_custom`; or too few rows for that share.
        ConfigError: see `custom_task`.
    """
    wanted = training_rows(TASKS[CUSTOM], data.num_train_samples)
    rows = load_custom(spec, wanted)
    task = custom_task(rows.labels, len(spec.texts), metrics)
    train, notes = rows.train, rows.notes + _short(rows.train, wanted)
    if rows.evaluation is not None:
        reported = rows.evaluation
    else:
        _refuse_lone_classes(spec, rows.train, task.labels)
        train, reported = hold_out(rows.train, data.heldout_fraction, data_seed, task.labels.names)
        reported = replace(reported, split=EVALUATION)
        kept_out = f"{len(reported):,} of {len(rows.train):,} rows are kept out for evaluation (data seed {data_seed})"
        notes += [] if data.folds else [kept_out]
    if not data.folds:
        notes += shared_rows(train, reported)
    reported = spaced_rows(reported, data.num_eval_samples)
    if len(set(train.labels.tolist())) < 2:
        raise DataError(f"{spec.train_file}: what is left for training ({counted(len(train), 'row')}) has one label; add rows")
    drawn = TaskData(train, [reported], [reported], notes, rows.train, task)
    return hold_out_for_selection(in_folds(drawn, data, data_seed), data, data_seed)


def _refuse_lone_classes(spec: CustomSpec, train: Examples, labels: LabelFacts) -> None:
    """A class of one row cannot be both trained on and scored.

    Raises:
        DataError: naming it.
    """
    counts = np.bincount(train.labels.astype(np.int64), minlength=len(labels.names)) if labels.names else np.array([2])
    lone = int(counts.argmin())
    if counts[lone] < 2:
        raise DataError(f"{spec.train_file}: class {labels.names[lone]!r} has one row only; add one, leave it out, or give --eval_file")
    if len(train) < 4:
        raise DataError(f"{spec.train_file}: {counted(len(train), 'row')} cannot be trained on and scored; add rows, or give --eval_file")


POOL = "pool"
"""Name of the split that cross-validation runs over."""


def in_folds(drawn: TaskData, data: DataConfig, data_seed: int) -> TaskData:
    """With `--folds`, all rows as one pool, and with `--fold` that fold of it to report on and the others to train on.

    Raises:
        DataError: see `assign_folds`.
    """
    if not data.folds:
        return drawn
    pool = drawn.train.join(drawn.reported[0], POOL)
    notes = [
        *drawn.notes,
        f"{data.folds} folds over {len(pool):,} rows: {len(drawn.train):,} {drawn.train.split}, "
        f"{len(drawn.reported[0]):,} {drawn.reported[0].split} (data seed {data_seed})",
    ]
    if data.fold is None:
        return replace(drawn, train=pool, watched=[pool], reported=[pool], drawn_from=pool, notes=notes)
    of_row = assign_folds(pool, data.folds, data_seed, bool(drawn.task.labels.names))
    kept, held = (np.flatnonzero(rows) for rows in (of_row != data.fold, of_row == data.fold))
    train, reported = pool.take(kept, "train"), [pool.take(held, f"fold_{data.fold}")]
    notes += shared_rows(train, reported[0])
    return replace(drawn, train=train, watched=reported, reported=reported, drawn_from=pool, notes=notes)


HOLDOUTS = {"qqp": "train_holdout"}
"""Task -> split of a mirror that takes the place of evaluation rows in cross-validation."""


def fold_splits(name: str, data_dir: str | None) -> list[str]:
    """The evaluation split that joins the training rows in cross-validation: the task's first, or a mirror's own holdout."""
    holdout = HOLDOUTS.get(name)
    there = holdout is not None and data_dir is not None and any(Path(data_dir).glob(f"*/*/{name}/{holdout}[.-]*"))
    return [str(holdout)] if there else list(TASKS[name].eval_splits)[:1]


def hold_out_for_selection(drawn: TaskData, data: DataConfig, data_seed: int) -> TaskData:
    """With `--selection=heldout`, epochs are scored on a share of the training rows.

    Raises:
        DataError: see `draw_rows`.
    """
    if data.selection != "heldout" or (data.folds and data.fold is None):
        return drawn
    kept, held = hold_out(drawn.train, data.heldout_fraction, data_seed, drawn.task.labels.names)
    return replace(drawn, train=kept, watched=[held])


def training_labels(drawn: TaskData, data: DataConfig, data_seed: int) -> list[np.ndarray]:
    """The labels of the training rows of every model of a run: of one, or of one per fold.

    Raises:
        DataError: see `assign_folds` and `draw_rows`; the fold is named.
    """
    if not data.folds or data.fold is not None:
        return [drawn.train.labels]
    names, found = drawn.task.labels.names, list[np.ndarray]()
    of_row = assign_folds(drawn.train, data.folds, data_seed, bool(names))
    for fold in range(data.folds):
        labels = drawn.train.labels[of_row != fold]
        if data.selection == "heldout":
            try:
                labels = labels[draw_rows(len(labels), data.heldout_fraction, data_seed, None, labels if names else None, names)[0]]
            except DataError as error:
                raise DataError(f"{error} (fold {fold} of --folds={data.folds})") from error
        found.append(labels)
    return found


def spaced_rows(examples: Examples, count: int | None) -> Examples:
    """At most `count` rows (None = all), evenly spaced: a file may hold one class after the other."""
    if count is None or count >= len(examples):
        return examples
    return examples.take(np.linspace(0, len(examples) - 1, count).round().astype(np.int64), examples.split)


def _short(train: Examples, wanted: int | None) -> list[str]:
    """A remark where a file has fewer rows than asked for."""
    few = wanted is not None and len(train) < wanted
    return [f"{wanted} training rows asked for, {len(train)} are there"] if few else []
