"""The values that modules hand to each other.

Letters, used with this meaning everywhere: S sentences in a split, B in a batch, L padded length, N real tokens in a batch,
d backbone width, h conv width, K conv layers, D pooled width, E edges, C classes.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from glot.prompts import UsedPrompts


def texts_sha256(texts: list[str]) -> str:
    """One hash over texts in order; the lengths keep ["ab", "c"] and ["a", "bc"] apart."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@dataclass(frozen=True)
class TokenBatch:
    """Token states of B sentences, one after the other, without padding.

    Attributes:
        tokens: (N, d) float, the states.
        ptr: (B + 1,) int64 on the CPU; sentence b owns `tokens[ptr[b]:ptr[b + 1]]`, never none.

    Raises:
        ValueError: `ptr` does not start at 0, end at N and increase strictly.
    """

    tokens: Tensor
    ptr: Tensor

    def __post_init__(self) -> None:
        ends_fit = int(self.ptr[0]) == 0 and int(self.ptr[-1]) == self.tokens.shape[0]
        if not ends_fit or bool((self.ptr.diff() <= 0).any()):
            raise ValueError(f"ptr must rise strictly from 0 to {self.tokens.shape[0]}, got {self.ptr.tolist()}")

    def __len__(self) -> int:
        return self.ptr.shape[0] - 1

    @classmethod
    def from_padded(cls, hidden: Tensor, mask: Tensor) -> "TokenBatch":
        """Drop the padding of `hidden (B, L, d)` by `mask (B, L)`, whichever side it is on."""
        mask = mask.bool()
        return cls(hidden[mask], offsets(mask.sum(1).cpu()))

    @classmethod
    def from_lengths(cls, tokens: Tensor, lengths: Tensor) -> "TokenBatch":
        """Join `tokens (N, d)` with the sentence lengths `(B,)` in order."""
        return cls(tokens, offsets(lengths))

    @cached_property
    def lengths(self) -> Tensor:
        """(B,) int64 on the CPU."""
        return self.ptr.diff()

    @cached_property
    def counts(self) -> Tensor:
        """`lengths` on the tokens' device."""
        return send(self.lengths, self.tokens.device)

    @cached_property
    def segment(self) -> Tensor:
        """(N,) int64 on the tokens' device: the sentence of each token."""
        return send(torch.repeat_interleave(torch.arange(len(self)), self.lengths), self.tokens.device)

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch with its tokens on `device`; `ptr` stays on the CPU, where blocks are planned."""
        return TokenBatch(send(self.tokens, device), self.ptr)

    def with_tokens(self, tokens: Tensor) -> "TokenBatch":
        """The same sentences with other states `(N, any width)`."""
        return TokenBatch(tokens, self.ptr)


def send(values: Tensor, device: torch.device | str) -> Tensor:
    """`values` on a device. From the CPU to CUDA they go through page-locked memory, so that nothing waits for the card."""
    if values.device.type == "cpu" and torch.device(device).type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def offsets(lengths: Tensor) -> Tensor:
    """Running totals of `lengths (B,)` with a leading zero: (B + 1,) int64."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.to(torch.int64).cumsum(0)])


@dataclass(frozen=True)
class Places:
    """Where rows stand in the files that they were read from.

    Attributes:
        files: their names.
        file_of: (S,) the file of each row.
        lines: (S,) its line there, from 1, as an editor counts; or its row, where the file has no lines.
        unit: `line` or `row`.
    """

    files: tuple[str, ...]
    file_of: np.ndarray
    lines: np.ndarray
    unit: str = "line"

    def of(self, row: int) -> str:
        """In words."""
        return f"{self.files[self.file_of[row]]}: {self.unit} {self.lines[row]}"

    def join(self, other: "Places") -> "Places":
        """Those of both, one after the other."""
        file_of = np.concatenate([self.file_of, other.file_of + len(self.files)])
        return Places((*self.files, *other.files), file_of, np.concatenate([self.lines, other.lines]), self.unit)

    def take(self, rows: np.ndarray) -> "Places":
        """Those of the given rows."""
        return Places(self.files, self.file_of[rows], self.lines[rows], self.unit)


@dataclass(frozen=True)
class Examples:
    """A split of a task.

    Attributes:
        name, split: of the task, of the split.
        columns: of S texts each.
        labels: (S,).
        names: of the columns; empty = not known.
        places: where the rows stand in a user's files.
    """

    name: str
    split: str
    columns: tuple[list[str], ...]
    labels: np.ndarray
    names: tuple[str, ...] = ()
    places: Places | None = None

    def __len__(self) -> int:
        return len(self.columns[0])

    def take(self, rows: np.ndarray, split: str) -> "Examples":
        """The given rows as a split of their own."""
        columns = tuple([column[row] for row in rows] for column in self.columns)
        places = None if self.places is None else self.places.take(rows)
        return Examples(self.name, split, columns, self.labels[rows], self.names, places)

    def join(self, other: "Examples", split: str) -> "Examples":
        """The rows of both, as a split of their own."""
        columns = tuple([*own, *more] for own, more in zip(self.columns, other.columns, strict=True))
        places = None if self.places is None or other.places is None else self.places.join(other.places)
        return Examples(self.name, split, columns, np.concatenate([self.labels, other.labels]), self.names, places)

    def where(self, row: int) -> str:
        """A row in words."""
        return f"{self.name} {self.split}: row {row}" if self.places is None else self.places.of(row)


@dataclass(frozen=True)
class Batch:
    """What one step sees: one TokenBatch per side, and labels `(B,)` or None.

    Attributes:
        shares: where several processes share the batch, the rows of each process for each side; `sides` are then this process's rows
            (one to keep in step, where its share is 0), `labels` are those of the whole batch.
        rank: this process's place in `shares`.
    """

    sides: tuple[TokenBatch, ...]
    labels: Tensor | None
    shares: tuple[tuple[int, ...], ...] = ()
    rank: int = 0

    def __len__(self) -> int:
        return sum(self.shares[0]) if self.shares else len(self.sides[0])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        labels = None if self.labels is None else send(self.labels, device)
        return Batch(tuple(side.to(device) for side in self.sides), labels, self.shares, self.rank)

    def widened(self) -> "Batch":
        """The same batch with its tokens in float32."""
        return replace(self, sides=tuple(side.with_tokens(side.tokens.float()) for side in self.sides))


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave. `seconds` has the keys train and evaluate."""

    epoch: int
    train_loss: float
    metrics: dict[str, float]
    seconds: dict[str, float]


@dataclass(frozen=True)
class FitResult:
    """All epochs of one training, the one that was selected and the last."""

    history: list[EpochResult]
    best: EpochResult
    last: EpochResult


@runtime_checkable
class TokenSource(Protocol):
    """Token states of S texts, stored or computed when asked for."""

    hidden_size: int

    @property
    def facts(self) -> dict[str, Any]:
        """What was found out about the backbone when it was loaded."""
        ...

    @property
    def store(self) -> dict[str, Any] | None:
        """Where the states lie and how large they are; None where they are computed."""
        ...

    @property
    def trained(self) -> list[nn.Parameter]:
        """Weights of the backbone that training moves; none of a frozen one."""
        ...

    def save(self, folder: Path) -> None:
        """Write the backbone, where it was trained."""
        ...

    def check(self) -> None:
        """Make sure that what was read is what was written; called before a result is written."""
        ...

    def __len__(self) -> int: ...

    def gather(self, rows: np.ndarray) -> TokenBatch:
        """The states of `rows (B,)` in that order, float32."""
        ...

    def read(self, rows: np.ndarray) -> TokenBatch:
        """`gather` in the precision that they lie in: what is moved to another device."""
        ...


class Texts(Protocol):
    """Distinct texts, each to be encoded once: in memory, or streamed from a file anew each time it is iterated."""

    @property
    def sha256(self) -> str:
        """One hash over the texts in order."""
        ...

    @property
    def used(self) -> "UsedPrompts":
        """What is put before them."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...

    def prompt(self, place: int) -> str:
        """What is put before one text."""
        ...

    def where(self, place: int) -> str:
        """The first row that holds a text, in words."""
        ...


class Tracker(Protocol):
    """Where numbers go while a run goes on."""

    def start(self, config: dict[str, object]) -> None:
        """Called once before the first step, with the flat configuration."""
        ...

    def go_on(self, lines: int, step: int) -> None:
        """Go on with an earlier record, of which the first `lines` lines up to `step` count; 0 = with none of it."""
        ...

    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers under their logged names (`loss/step`, `metrics/acc`, ...)."""
        ...

    def summarise(self, result: dict[str, Any]) -> None:
        """Called once after the last number, with the written result object. A run that broke off has none."""
        ...

    def close(self, failed: bool = False) -> None:
        """Called last, however the run ended."""
        ...


class Batches(Protocol):
    """Something that yields the batches of one epoch, anew each time it is iterated."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...
