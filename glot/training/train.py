"""The training loop: the only place in the project that steps an optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from glot.errors import DataError, TrainingError
from glot.progress import Clock, bar, warn
from glot.types import Batches

NEVER = 1 << 62
DIVERGED = 1e6
"""Mean loss of an epoch beyond which a line says that training has gone astray."""


class Record(Protocol):
    """What the loop tells of its steps and epochs."""

    def log_step(self, step: int, loss: Tensor) -> None:
        """The loss of a step, every few steps."""
        ...

    def end_epoch(self, epoch: int, step: int, loss: Tensor, clock: Clock) -> None:
        """Score the model as it is now, under the clock's phase `evaluate`; `loss` is the mean over the epoch's rows."""
        ...

    def restore(self) -> int | None:
        """Put back the weights of the selected epoch, and return its number; None where no epoch was finished."""
        ...


@dataclass(frozen=True)
class FitOptions:
    """How long to train.

    Attributes:
        epochs: passes over the batches.
        log_every: steps between two logged losses.
        verbose: a bar.
        schedule: called with the loss of every step, to adapt the learning rate.
    """

    epochs: int
    log_every: int = 10
    verbose: bool = True
    schedule: Callable[[float], None] | None = None


def fit(
    model: nn.Module,
    batches: Batches,
    loss: Callable[..., Tensor],
    optimizer: torch.optim.Optimizer,
    record: Record,
    options: FitOptions,
) -> None:
    """Train a model and leave everything that was trained in the state of its selected epoch.

    Args:
        model: Batch -> output; may be a part of what the optimizer moves (a backbone sits behind `batches`).
        batches: one epoch of training batches each time it is iterated.
        loss: (output, labels) -> scalar.
        optimizer: over every parameter to train.
        record: hears of every step and epoch, scores the model and keeps its best epoch.
        options: see there.

    Raises:
        TrainingError: a loss or a weight is no longer finite; the step is named, and the weights of the best epoch so far are restored.
        DataError: there is no batch to train on.
    """
    step = 0
    try:
        for epoch in range(1, options.epochs + 1):
            clock = Clock("train", "evaluate")
            with clock.phase("train"):
                mean_loss, step = _train_epoch(model, batches, loss, optimizer, record, options, (step, epoch))
            record.end_epoch(epoch, step, mean_loss, clock)
            if float(mean_loss.abs().max()) > DIVERGED:
                warn(f"epoch {epoch}: the loss has diverged ({float(mean_loss.abs().max()):.3g}); a smaller --lr may help")
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
    place: tuple[int, int],
) -> tuple[Tensor, int]:
    """One pass from a place (steps so far, epoch); returns the mean loss over rows and the number of steps so far."""
    model.train()
    (step, epoch), total, rows = place, torch.zeros(()), 0
    first_bad = torch.full((), NEVER)  # stays on the device, like the loss: few synchronisations
    for batch in bar(batches, f"epoch {epoch}/{options.epochs}", "step", options.verbose):
        value = loss(model(batch), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        value.sum().backward()  # a scalar, or one loss per stacked model: they share no weight, so each gets its own gradient
        optimizer.step()
        if options.schedule is not None:
            options.schedule(float(value.detach()))
        step += 1
        total = value.detach() * len(batch) + total.to(value.device)  # stays on the device: one synchronisation per epoch
        rows += len(batch)
        bad_here = torch.where(torch.isfinite(value.detach()).all(), NEVER, step)
        first_bad = torch.minimum(first_bad.to(value.device), bad_here)
        if step % options.log_every == 0:
            _refuse_non_finite(int(first_bad))
            record.log_step(step, value.detach())
    if not rows:
        raise DataError("an epoch without a batch: every training row shares a text with every other, or there is one row alone; add rows")
    _refuse_non_finite(int(first_bad))
    weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in [*weights, *model.buffers()] if tensor.is_floating_point()):
        _refuse_non_finite(step, "a weight")
    return total / rows, step


def _refuse_non_finite(step: int, what: str = "the loss") -> None:
    if step < NEVER:
        raise TrainingError(f"step {step}: {what} is not finite; try a smaller --lr")
