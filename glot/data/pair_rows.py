"""The rows of contrastive training: which of a file of pairs are trained on, and the slice that is ranked after every epoch."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glot.data import PairFile, PairOptions, draw_rows
from glot.data.tasks import TaskSpec, training_rows
from glot.errors import DataError
from glot.prompts import NO_PROMPTS, UsedPrompts
from glot.words import counted

LARGEST_SLICE = 2000
"""Most rows of pairs that are kept out of training to be ranked after every epoch."""


@dataclass(frozen=True)
class PairRows:
    """Some rows of a file of pairs: places of their texts, one array per side."""

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
    task: TaskSpec

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
        notes.append(
            f"{counted(pairs.short_rows, 'row')} have fewer than {counted(spec.hard_negatives, 'negative')} and bring those they have"
        )
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
    notes.append(f"{counted(len(heldout), 'row', be=True)} held out of training and ranked after every epoch")
    digest = hashlib.sha256(pairs.sha256.encode() + held.tobytes() + spec.used.key.encode()).hexdigest()
    return PairData(train, heldout, notes, digest, task), pairs
