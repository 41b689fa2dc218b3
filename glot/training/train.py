"""The training loop: the only place in the project that steps an optimizer."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from glot.errors import DataError, TrainingError
from glot.progress import Clock, bar, warn
from glot.types import Batches

NEVER = 1 << 62
DIVERGED = 1e6
"""Mean loss of an epoch beyond which a line says that training has gone astray."""


@dataclass
class Place:
    """Where a training stands.

    Attributes:
        epoch: that is being trained, from 1.
        batches: of it that are done.
        step: steps in all.
        rows: of this epoch so far.
        total: their summed loss, () or (R,) for R stacked models.
        seconds: of this epoch so far.
    """

    epoch: int = 1
    batches: int = 0
    step: int = 0
    rows: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    seconds: float = 0.0


class Record(Protocol):
    """What the loop tells of its steps and epochs."""

    def begin(self, state: Any) -> None:
        """Take up what `state` gave; None = nothing was trained yet."""
        ...

    def state(self) -> Any:
        """All that is known of the epochs so far, as tensors and plain values."""
        ...

    def log_step(self, step: int, loss: Tensor) -> None:
        """The loss of a step, every few steps."""
        ...

    def end_epoch(self, epoch: int, step: int, loss: Tensor, clock: Clock) -> None:
        """Score the model as it is now, under the clock's phase `evaluate`; `loss` is the mean over the epoch's rows."""
        ...

    def restore(self) -> int | None:
        """Put back the weights of the selected epoch, and return its number; None where no epoch was finished."""
        ...

    def is_over(self) -> bool:
        """Whether further epochs would not count."""
        ...


class Schedule(Protocol):
    """Adapts the learning rate."""

    def step(self, metrics: Tensor) -> None:
        """The loss of a step, (R,) of stacked models."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes up."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        ...


class Saver(Protocol):
    """Keeps a training's state, so that another process can go on with it."""

    def begin(self) -> Place:
        """Where training begins: at the start, or where the state says that is taken up."""
        ...

    def attended(self) -> AbstractContextManager[None]:
        """Around the steps: a signal to end waits for the end of one."""
        ...

    def is_due(self, step: int) -> bool:
        """Whether to call `end_step` after this step."""
        ...

    def end_step(self, place: Place) -> None:
        """Save within an epoch."""
        ...

    def end_epoch(self, place: Place) -> None:
        """Save at the start of the next epoch."""
        ...


class NoSaver:
    """A `Saver` that saves nothing."""

    def begin(self) -> Place:
        """At the start."""
        return Place()

    def attended(self) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def is_due(self, step: int) -> bool:
        """Never."""
        return False

    def end_step(self, place: Place) -> None:
        """Nothing."""

    def end_epoch(self, place: Place) -> None:
        """Nothing."""


NO_SAVER = NoSaver()


@dataclass(frozen=True)
class FitOptions:
    """How long to train.

    Attributes:
        epochs: passes over the batches.
        log_every: steps between two logged losses.
        verbose: a bar.
        schedule: told the loss of every step.
        grad_clip: largest norm of the gradient; 0 = any.
    """

    epochs: int
    log_every: int = 10
    verbose: bool = True
    schedule: Schedule | None = None
    grad_clip: float = 0.0


def fit(
    model: nn.Module,
    batches: Batches,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    record: Record,
    options: FitOptions,
    saver: Saver = NO_SAVER,
) -> None:
    """Train a model and leave everything that was trained in the state of its selected epoch.

    Args:
        model: Batch -> output; may be a part of what the optimizer moves (a backbone sits behind `batches`).
        batches: one epoch of training batches each time it is iterated.
        loss: (output, labels) -> scalar.
        optimizer: over every parameter to train.
        record: hears of every step and epoch, scores the model and keeps its best epoch.
        options: see there.
        saver: keeps the state between steps.

    Raises:
        TrainingError: a loss or a weight is no longer finite; the step is named, and the weights of the best epoch so far are restored.
        DataError: there is no batch to train on.
    """
    place = saver.begin()
    try:
        with saver.attended():
            while place.epoch <= options.epochs and not record.is_over():
                clock, epoch = Clock("train", "evaluate"), place.epoch
                _train_epoch(model, batches, loss, optimizer, record, options, saver, place)
                clock.seconds["train"], mean_loss = place.seconds, place.total / place.rows
                record.end_epoch(epoch, place.step, mean_loss, clock)
                if float(mean_loss.abs().max()) > DIVERGED:
                    warn(f"epoch {epoch}: the loss has diverged ({float(mean_loss.abs().max()):.3g}); a smaller --lr may help")
                place = Place(epoch + 1, step=place.step)
                saver.end_epoch(place)
    except TrainingError as error:
        raise TrainingError(str(error), record.restore()) from error
    record.restore()


def _train_epoch(
    model: nn.Module,
    batches: Batches,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    record: Record,
    options: FitOptions,
    saver: Saver,
    place: Place,
) -> None:
    """One pass, or the rest of one from a place, which moves along."""
    model.train()
    begun = time.perf_counter() - place.seconds
    first_bad = torch.full((), NEVER)  # stays on the device, like the loss: few synchronisations
    for batch in bar(batches, f"epoch {place.epoch}/{options.epochs}", "step", options.verbose):
        value = loss(model(batch), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        value.sum().backward()  # a scalar, or one loss per stacked model: they share no weight, so each gets its own gradient
        if options.grad_clip:
            nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], options.grad_clip)
        optimizer.step()
        if options.schedule is not None:
            options.schedule.step(value.detach())
        place.step, place.batches, place.rows = place.step + 1, place.batches + 1, place.rows + len(batch)
        place.total = value.detach() * len(batch) + place.total.to(value.device)  # on the device: one synchronisation per epoch
        bad_here = torch.where(torch.isfinite(value.detach()).all(), NEVER, place.step)
        first_bad = torch.minimum(first_bad.to(value.device), bad_here)
        due = saver.is_due(place.step)
        if due or place.step % options.log_every == 0:
            _refuse_non_finite(int(first_bad))
        if place.step % options.log_every == 0:
            record.log_step(place.step, value.detach())
        if due:
            place.seconds = time.perf_counter() - begun
            saver.end_step(place)
    if not place.rows:
        raise DataError("an epoch without a batch: every training row shares a text with every other, or there is one row alone; add rows")
    _refuse_non_finite(int(first_bad))
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in [*weights, *model.buffers()] if tensor.is_floating_point()):
        _refuse_non_finite(place.step, "a weight")
    place.seconds = time.perf_counter() - begun


def _refuse_non_finite(step: int, what: str = "the loss") -> None:
    if step < NEVER:
        raise TrainingError(f"step {step}: {what} is not finite; try a smaller --lr")
