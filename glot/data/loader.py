"""Texts and token sources become epochs of batches."""

import itertools
import math
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from glot.distributed import ALONE, Processes
from glot.prompts import NO_PROMPTS, UsedPrompts
from glot.types import Batch, Examples, TokenSource, texts_sha256


class TextIndex:
    """The distinct texts of several splits in order of first appearance: what is encoded, each once."""

    def __init__(self, splits: list[Examples], used: UsedPrompts = NO_PROMPTS) -> None:
        self._splits, self.used = splits, used
        self._places: dict[str, int] = {}
        for split in splits:
            for column in split.columns:
                for text in column:
                    self._places.setdefault(text, len(self._places))
        self.texts = list(self._places)

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    @cached_property
    def sha256(self) -> str:
        """One hash over the distinct texts in order."""
        return texts_sha256(self.texts)

    def sides(self, split: Examples) -> tuple[np.ndarray, ...]:
        """For each column of a split, the place of every row's text among `texts`: (S,) each."""
        return tuple(np.array([self._places[text] for text in column]) for column in split.columns)

    def prompt(self, place: int) -> str:
        """What is put before one text: the same for all."""
        return self.used.query

    def where(self, place: int) -> str:
        """The first row that holds a text, in words."""
        text = self.texts[place]
        split = next(split for split in self._splits if any(text in column for column in split.columns))
        row = min(column.index(text) for column in split.columns if text in column)
        return split.where(row)


class _Rows(Dataset[Batch]):
    """`rows[batch of indices]` -> Batch, or this process's share of it; what a worker process holds."""

    def __init__(self, sides: tuple[np.ndarray, ...], labels: np.ndarray | None, source: TokenSource, team: Processes) -> None:
        self.sides, self.labels, self.source, self.team = sides, labels, source, team

    def __len__(self) -> int:
        return len(self.sides[0])

    def __getitem__(self, rows: list[int]) -> Batch:
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows])
        sides, shares = [], []
        for side in self.sides:
            places = [side[part].ravel() for part in self.team.split(rows)]
            present = [part[part >= 0] for part in places]  # a row may have fewer negatives than others
            if any(map(len, present)):
                own = present[self.team.rank]
                sides.append(self.source.read(own if len(own) else np.concatenate(present)[:1]))
                shares.append(tuple(map(len, present)))
        return Batch(tuple(sides), labels, tuple(shares) if self.team.count > 1 else (), self.team.rank)


class DistinctBatches(Sampler[list[int]]):
    """Batches of shuffled rows in which no text stands twice: a text that is another row's match would be pushed away as a negative.

    A row that would repeat a text goes to a later batch. A row that would be alone in its batch is left out of the epoch: it has nothing
    to be compared with.
    """

    def __init__(self, sides: tuple[np.ndarray, ...], batch_size: int, generator: torch.Generator) -> None:
        self._texts = np.column_stack([side.reshape(len(side), -1) for side in sides])
        self._size, self._generator = batch_size, generator
        rows = np.arange(len(self._texts)).repeat(self._texts.shape[1])
        held = np.unique(np.column_stack([rows, self._texts.ravel()])[self._texts.ravel() >= 0], axis=0)  # each text of a row once
        self._most = int(np.unique(held[:, 1], return_counts=True)[1].max(initial=0))

    def __len__(self) -> int:
        """Batches of an epoch: at least one for each row that holds the commonest text."""
        return max(self._most, math.ceil(len(self._texts) / self._size))

    def __iter__(self) -> Iterator[list[int]]:
        batches: list[list[int]] = []
        free_from: dict[int, int] = {}  # text -> the first batch behind the last one that holds it
        open_at: list[int] = []  # union-find with path compression: the next batch at or after i that has room
        for row in torch.randperm(len(self._texts), generator=self._generator).tolist():
            texts = {text for text in self._texts[row].tolist() if text >= 0}
            place = _first_open(open_at, max(free_from.get(text, 0) for text in texts))
            while place >= len(batches):
                open_at.append(len(batches))
                batches.append([])
            batches[place].append(row)
            if len(batches[place]) == self._size:
                open_at[place] = place + 1
            free_from.update(dict.fromkeys(texts, place + 1))
        yield from (batch for batch in batches if len(batch) > 1)


def _first_open(open_at: list[int], place: int) -> int:
    """The first batch from `place` on that is not full; `len(open_at)` is a new one."""
    walked = []
    while place < len(open_at) and open_at[place] != place:
        walked.append(place)
        place = open_at[place]
    for passed in walked:
        open_at[passed] = place
    return place


class _Batches(Sampler[list[int]]):
    """The batches of a sampler; the next time they are asked for without the first `done`."""

    def __init__(self, batches: Sampler[list[int]] | BatchSampler) -> None:
        self._all, self.done = batches, 0

    def __len__(self) -> int:
        return len(self._all) - self.done  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        done, self.done = self.done, 0
        return itertools.islice(iter(self._all), done, None)


class Readers(NamedTuple):
    """Who reads batches: `ahead` worker processes of this process, and the `team` of processes that share each batch."""

    ahead: int = 0
    team: Processes = ALONE


NO_READERS = Readers()


class BatchLoader:
    """Epochs of batches over one split.

    Args:
        sides: one (S,) array per column, rows of `source`; (S, n) for n negatives per row, -1 where there are fewer.
        labels: (S,), or None for contrastive rows: each is its own class, and shuffled batches hold no text twice.
        source: where the states come from.
        batch_size: sentences or pairs; the last batch may be smaller.
        device: where batches end up.
        seed: shuffles anew in every epoch; None keeps the order.
        readers: processes that gather ahead, and processes that share each batch.
    """

    def __init__(
        self,
        sides: tuple[np.ndarray, ...],
        labels: np.ndarray | None,
        source: TokenSource,
        batch_size: int,
        device: torch.device,
        seed: int | None = None,
        readers: Readers = NO_READERS,
    ) -> None:
        rows = _Rows(sides, labels, source, readers.team)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        order = SequentialSampler(rows) if generator is None else RandomSampler(rows, generator=generator)
        plain = BatchSampler(order, batch_size, drop_last=False)
        self._generator = generator
        self._batches = _Batches(DistinctBatches(sides, batch_size, generator) if labels is None and generator else plain)
        self._loader = DataLoader(
            rows,
            sampler=self._batches,
            batch_size=None,
            num_workers=readers.ahead,
            persistent_workers=readers.ahead > 0,
            generator=torch.Generator(),  # its own, or the draw for worker seeds would shift the order of later epochs
        )
        self.device = device

    def __len__(self) -> int:
        return len(self._loader)

    @property
    def order(self) -> Tensor:
        """State of the generator that draws the order of the next epoch; empty where the order is kept."""
        return torch.empty(0) if self._generator is None else self._generator.get_state()

    def go_on(self, order: Tensor, done: int) -> None:
        """The next epoch is the one that was drawn from the state `order`, without its first `done` batches."""
        if self._generator is not None:
            self._generator.set_state(order)
        self._batches.done = done

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            yield batch.to(self.device).widened()  # there: half as many bytes travel
