"""The state of a training that is not finished: saved in its run folder, taken up by the same command, deleted at the end.

runs/<run_name>/training-<step>-<checksum>.pt     weights, optimizer, schedule, best epoch, random states, place in the epoch
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glot.data.loader import BatchLoader
from glot.distributed import ALONE, Processes
from glot.errors import CheckpointError, library_door, reason
from glot.interrupts import Stopped, between_steps
from glot.progress import say, warn
from glot.states.store.checksums import checksum_of_file
from glot.training.train import Place, Record, Schedule

PATTERN, PARTIAL = "training-*.pt", "training.partial"


@dataclass(frozen=True)
class Moving:
    """Everything that a training changes.

    Attributes:
        tensors: weights and running statistics, of the backbone too where it is trained.
        optimizer: over them.
        schedule: of the learning rate.
        record: of the epochs.
        batches: of training.
    """

    tensors: list[Tensor]
    optimizer: torch.optim.Optimizer
    schedule: Schedule | None
    record: Record
    batches: BatchLoader


@dataclass
class TrainingState:
    """The state of a training in its run folder, as a `train.Saver`.

    Args:
        folder: of the run; of the first one of a stack.
        fingerprints: of the run, or of all runs of a stack: a state of other runs is not taken up.
        moving: what is saved.
        every: steps between two saves within an epoch; 0 = at the ends of epochs alone.
        team: processes of the run. The first one writes.
        notes: get a line where an earlier process's state is taken up.
        verbose: say so.

    Examples:
        >>> state = TrainingState(run.folder, [run.fingerprint], Moving(tensors, optimizer, None, record, batches))
        >>> fit(model, batches, loss, optimizer, record, options, state)
    """

    folder: Path
    fingerprints: list[str]
    moving: Moving
    every: int = 0
    team: Processes = ALONE
    notes: list[str] = field(default_factory=list)
    verbose: bool = False
    _order: Tensor = field(default_factory=lambda: torch.empty(0))
    _leaving: Callable[[], bool] = lambda: False
    _full: bool = False

    def begin(self) -> Place:
        """See `train.Saver`."""
        state = self.team.share(read_state(self.folder, self.fingerprints) if self.team.is_first else None)
        self._order = self.moving.batches.order
        if state is None:
            self.moving.record.begin(None)
            return Place()
        with torch.no_grad():
            for tensor, value in zip(self.moving.tensors, state["tensors"], strict=True):
                tensor.copy_(value)
        self.moving.optimizer.load_state_dict(state["optimizer"])
        if self.moving.schedule is not None:
            self.moving.schedule.load_state_dict(state["schedule"])
        self.moving.record.begin(state["record"])
        place = Place(**state["place"])
        self._order = state["order"]
        self.moving.batches.go_on(self._order, place.batches)
        saved = state["random"]
        _set_random_states(saved[self.team.rank % len(saved)])
        line = f"went on from epoch {place.epoch}, step {place.step}, of a process that had stopped"
        if len(saved) != self.team.count:
            line += f"; it was one of {len(saved)}, this is one of {self.team.count}, so numbers may differ"
        if state["threads"] != torch.get_num_threads():
            line += f"; it had {state['threads']} threads, this one {torch.get_num_threads()}, so last digits may differ"
        self.notes.append(line)
        say(f"{self.folder}: {line}", self.verbose)
        return place

    @contextmanager
    def attended(self) -> Iterator[None]:
        """See `train.Saver`."""
        if self.team.count > 1:  # all processes would have to stop at the same step
            yield
            return
        with between_steps() as leaving:
            self._leaving = leaving
            yield

    def end_step(self, place: Place) -> None:
        """See `train.Saver`."""
        self._save(place)

    def end_epoch(self, place: Place) -> None:
        """See `train.Saver`."""
        self._order = self.moving.batches.order
        self._save(place)

    def is_due(self, step: int) -> bool:
        """See `train.Saver`."""
        return self._leaving() or bool(self.every and step % self.every == 0)

    def remove(self) -> None:
        """Delete what was saved: the run is finished."""
        for path in (*self.folder.glob(PATTERN), self.folder / PARTIAL):  # a process that was killed may have left half of one
            path.unlink(missing_ok=True)

    def _save(self, place: Place) -> None:
        states = self.team.collect(_random_states())
        if not self.team.is_first:
            return
        state = {
            "fingerprints": self.fingerprints,
            "place": vars(place),
            "order": self._order,
            "tensors": [tensor.detach() for tensor in self.moving.tensors],
            "optimizer": self.moving.optimizer.state_dict(),
            "schedule": None if self.moving.schedule is None else self.moving.schedule.state_dict(),
            "record": self.moving.record.state(),
            "random": states,
            "threads": torch.get_num_threads(),
        }
        try:
            path = write_state(self.folder, place.step, state)
        except CheckpointError as error:
            if not self._full:
                warn(f"{error}; training goes on, and cannot be taken up from here")
            self._full = True
            path = None
        if self._leaving():
            if path is not None:
                say(f"saved after step {place.step}: {path}")
            raise Stopped


def write_state(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Save a state under its step and checksum, and delete what was saved before.

    Raises:
        CheckpointError: it cannot be written; what was saved before stays.
    """
    partial = folder / PARTIAL
    try:
        with library_door(CheckpointError, lambda error: f"{partial}: cannot be written ({reason(error)})"):
            torch.save(state, partial)
            path = folder / f"training-{step:08d}-{checksum_of_file(partial)}.pt"
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    for other in folder.glob(PATTERN):
        if other != path:
            other.unlink()
    return path


def read_state(folder: Path, fingerprints: list[str] | None = None) -> dict[str, Any] | None:
    """The latest state in a folder, of these runs where they are named; None where there is none. A damaged one is said."""
    for path in sorted(folder.glob(PATTERN), reverse=True):
        if path.stem.rpartition("-")[2] != checksum_of_file(path):
            warn(f"{path}: is not what was written, so it is not taken up")
            continue
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if fingerprints is None or state["fingerprints"] == fingerprints:
            return state
    return None


def _random_states() -> dict[str, Any]:
    """Of torch, NumPy and Python: dropout of a backbone may draw from any."""
    kind, keys, *rest = np.random.get_state()
    states: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    states["numpy"] = (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest)
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
