"""The table of tasks: a row says everything in which one task differs from another."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from glot.data import PairFile, PairOptions, StressOptions, draw_rows, generate_stress, hold_out, load_splits
from glot.errors import DataError
from glot.nn.heads import CosineHead, InBatchHead, PairHead, SingleHead
from glot.nn.losses import cosine_mse, cross_entropy, symmetric_info_nce
from glot.prompts import NO_PROMPTS, UsedPrompts
from glot.settings.config import DataConfig, StressConfig
from glot.types import Examples, texts_sha256


class TaskSpec(NamedTuple):
    """One task.

    Attributes:
        head: class of the head.
        num_labels: C.
        loss: (output, labels) -> scalar.
        metrics: names of `glot.training.metrics.METRICS`; the first is the reported one.
        select_by: the metrics whose mean picks the best epoch (the release's habit).
        eval_splits: split -> suffix of its metric names.
        subset_rows: rows that `--num_train_samples=subset` takes; None = all.
        head_flags, loss_flags: flags that the head's constructor and the loss take besides, under their names.
        patience: steps without a lower loss after which the learning rate falls to a tenth; None = it stays.
    """

    head: Callable[[int, int], nn.Module]
    num_labels: int
    loss: Callable
    metrics: tuple[str, ...]
    select_by: tuple[str, ...]
    eval_splits: dict[str, str]
    subset_rows: int | None = None
    head_flags: tuple[str, ...] = ()
    loss_flags: tuple[str, ...] = ()
    patience: int | None = None


ACCURACY = ("accuracy",)
VALIDATION = {"validation": ""}
SUBSET = 20_000

TASKS: dict[str, TaskSpec] = {
    "cola": TaskSpec(SingleHead, 2, cross_entropy, ("mcc", "accuracy"), ACCURACY, VALIDATION),
    "sst2": TaskSpec(SingleHead, 2, cross_entropy, ("accuracy", "mcc"), ACCURACY, VALIDATION),
    "stsb": TaskSpec(CosineHead, 1, cosine_mse, ("spearman", "pearson"), ("spearman", "pearson"), VALIDATION),
    "mrpc": TaskSpec(PairHead, 2, cross_entropy, ("f1", "accuracy"), ACCURACY, VALIDATION),
    "qqp": TaskSpec(PairHead, 2, cross_entropy, ("f1", "accuracy"), ACCURACY, VALIDATION, SUBSET),
    "mnli": TaskSpec(PairHead, 3, cross_entropy, ACCURACY, ACCURACY, {"validation_matched": "", "validation_mismatched": "_mm"}, SUBSET),
    "qnli": TaskSpec(PairHead, 2, cross_entropy, ("accuracy", "f1"), ACCURACY, VALIDATION, SUBSET),
    "rte": TaskSpec(PairHead, 2, cross_entropy, ("accuracy", "f1"), ACCURACY, VALIDATION),
    "wnli": TaskSpec(PairHead, 2, cross_entropy, ("accuracy", "f1"), ACCURACY, VALIDATION),
    "imdb": TaskSpec(SingleHead, 2, cross_entropy, ("accuracy", "mcc"), ACCURACY, {"test": ""}),
    "stress": TaskSpec(SingleHead, 2, cross_entropy, ACCURACY, ACCURACY, VALIDATION, 2_000),
    "embedding": TaskSpec(
        InBatchHead,
        0,
        symmetric_info_nce,
        ("mrr_at_10", "recall_at_1", "loss"),
        ("mrr_at_10",),
        {"heldout": ""},
        SUBSET,
        head_flags=("contrastive_normalize",),
        loss_flags=("temperature",),
        patience=50,
    ),
}
"""`--task` -> row. A new task is a row here and, at most, a loader in `glot/datasets`."""

LABEL_SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "0_1": lambda labels: labels / 5,
    "-1_1": lambda labels: labels / 2.5 - 1,
    "raw": lambda labels: labels,
}
"""`--label_scale` -> target of the cosine, from scores 0 to 5."""


def training_loss(task: TaskSpec, flags: dict[str, Any]) -> Callable:
    """The loss of a task, (output, labels) -> scalar, with the flags that it takes."""
    return partial(task.loss, **{name: flags[name] for name in task.loss_flags})


def training_rows(task: TaskSpec, num_train_samples: str) -> int | None:
    """`subset`, `full` or a number -> how many rows, None = all."""
    words = {"subset": task.subset_rows, "full": None}
    return words[num_train_samples] if num_train_samples in words else int(num_train_samples)


def check_classes(task: TaskSpec, examples: Examples) -> None:
    """Refuse labels that are no class of the task.

    Raises:
        DataError: the first such row.
    """
    allowed = np.arange(task.num_labels) if task.num_labels > 1 else None
    wrong = np.flatnonzero(~np.isin(examples.labels, allowed)) if allowed is not None else []
    if len(wrong):
        where = f"{examples.name} {examples.split}: row {wrong[0]}"
        raise DataError(f"{where} has label {examples.labels[wrong[0]]:g}; the task has classes 0 to {task.num_labels - 1}")


def targets(task: TaskSpec, examples: Examples, label_scale: str) -> np.ndarray:
    """Labels as the loss wants them: int64 classes, or float32 cosines for the one task without classes."""
    labels = examples.labels
    if task.num_labels == 1:
        return LABEL_SCALES[label_scale](labels).astype(np.float32)
    return labels.astype(np.int64)


@dataclass(frozen=True)
class TaskData:
    """The splits of a run: training rows, what every epoch is scored on, and what is reported in the end (often the same)."""

    train: Examples
    watched: list[Examples]
    reported: list[Examples]
    notes: list[str]
    drawn_from: Examples
    """The training rows before any were held out: what is stored does not depend on which were."""
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


def load_task_data(task: TaskSpec, data: DataConfig, stress: StressConfig, seq_len: int, data_seed: int) -> TaskData:
    """Read or generate the rows of a task, and hold out a share of the training rows where asked.

    Raises:
        DataError: see `glot.data`.
    """
    wanted = training_rows(task, data.num_train_samples)
    if data.task == "stress":
        options = StressOptions(seq_len, stress.distractor_ratio, stress.signal_position, stress.relational_distance)
        count = task.subset_rows if wanted is None else wanted
        train, evaluation = generate_stress(stress.stress_variant, options, count, stress.num_eval_samples, data_seed)
        reported = [evaluation]
    else:
        splits = [data.eval_split] if data.eval_split else list(task.eval_splits)
        train, reported = load_splits(data.task, "train", splits, data.data_dir, wanted)
    for split in [train, *reported]:
        check_classes(task, split)
    if task.num_labels > 1 and len(set(train.labels.tolist())) < 2:
        # IMDB's file has one class after the other, so its first rows are all of one
        raise DataError(
            f"--num_train_samples={data.num_train_samples}: the first {len(train)} rows of {data.task} "
            f"all have label {train.labels[0]:g}; take more"
        )
    notes = []
    if wanted is not None and len(train) < wanted:
        notes.append(f"{wanted} training rows asked for, {len(train)} are there")
    if data.selection != "heldout":
        return TaskData(train, reported, reported, notes, train)
    kept, held = hold_out(train, data.heldout_fraction, data_seed, stratify=task.num_labels > 1)
    return TaskData(kept, [held], reported, notes, train)


LARGEST_SLICE = 2000
"""Most rows of pairs that are kept out of training to be ranked after every epoch."""


@dataclass(frozen=True)
class PairRows:
    """Some rows of a file of pairs: places of their texts, one array a side."""

    split: str
    sides: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.sides[0])


@dataclass(frozen=True)
class PairData:
    """The rows of contrastive training, and the slice that every epoch is scored on; the counterpart of `TaskData`."""

    train: PairRows
    heldout: PairRows
    notes: list[str]
    sha256: str

    @property
    def watched(self) -> list[PairRows]:
        return [self.heldout]

    @property
    def reported(self) -> list[PairRows]:
        return [self.heldout]


class PairSpec(NamedTuple):
    """What is read from a file of pairs: the fields are flags, but for the prompts that are put before its texts."""

    train_file: str
    num_train_samples: str = "subset"
    hard_negatives: int = 0
    skip_bad_rows: bool = False
    heldout_fraction: float = 0.1
    data_seed: int = 0
    used: UsedPrompts = NO_PROMPTS


def load_pair_data(task: TaskSpec, spec: PairSpec, verbose: bool = False) -> tuple[PairData, PairFile]:
    """Read a file of pairs and keep a slice of its queries, drawn with the data seed, out of training.

    Raises:
        DataError: see `PairFile`; or hard negatives are asked for and no row has any.
    """
    wanted = training_rows(task, spec.num_train_samples)
    pairs = PairFile(Path(spec.train_file), PairOptions(wanted, spec.hard_negatives, spec.skip_bad_rows, verbose, spec.used))
    notes = [f"{pairs.bad:,} malformed rows were skipped"] if pairs.bad else []
    if wanted is not None and pairs.num_rows < wanted:
        notes.append(f"{wanted:,} training rows asked for, {pairs.num_rows:,} are there")
    if pairs.short_rows:
        if not (pairs.negatives >= 0).any():
            raise DataError(f"--hard_negatives={spec.hard_negatives}: no row of {pairs.path} has a negative; use 0")
        notes.append(f"{pairs.short_rows:,} rows have fewer than {spec.hard_negatives} negatives and bring those they have")
    queries, query_of_row = np.unique(pairs.queries, return_inverse=True)
    _, held_queries = draw_rows(len(queries), spec.heldout_fraction, spec.data_seed, LARGEST_SLICE)
    is_held = np.isin(query_of_row, held_queries)  # all rows of a query, or what is ranked would have been trained on
    kept, held = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    sides = (pairs.queries, pairs.positives, pairs.negatives) if spec.hard_negatives else (pairs.queries, pairs.positives)
    train, heldout = (PairRows(name, tuple(side[rows] for side in sides)) for name, rows in (("train", kept), ("heldout", held)))
    own_query, own_positive = train.sides[:2]
    in_rows = np.concatenate([own_query, own_positive[own_positive != own_query]])
    most = int(np.unique(in_rows, return_counts=True)[1].max())
    if most == len(train):
        raise DataError(f"{pairs.path}: one text stands in all {most} training rows, so none can be told from another; add rows")
    if most > 1:
        notes.append(f"a text stands in up to {most:,} training rows: no batch holds it twice, a row left alone in its batch is left out")
    notes.append(f"{len(heldout):,} rows are held out of training and ranked after every epoch")
    digest = hashlib.sha256(pairs.sha256.encode() + held.tobytes() + spec.used.key.encode()).hexdigest()
    return PairData(train, heldout, notes, digest), pairs
