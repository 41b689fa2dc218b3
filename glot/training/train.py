"""The training loop: the only place in the project that steps an optimizer."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glot.errors import DataError, TrainingError
from glot.progress import Clock, bar, say, warn
from glot.types import Batches, EpochResult, FitResult, Tracker

NEVER = 1 << 62
DIVERGED = 1e6
"""Mean loss of an epoch beyond which a line says that training has gone astray."""
LOGGED = {"accuracy": "acc", "accuracy_mm": "acc_mm"}
"""Metric names that trackers know under another name (`metrics/acc`); the others keep theirs."""


@dataclass(frozen=True)
class FitOptions:
    """How long to train and which epoch to keep.

    Attributes:
        epochs: passes over the batches.
        select_by: metrics whose mean picks the epoch; empty = the last.
        log_every: steps between two logged losses.
        verbose: bars, and a line an epoch.
        schedule: called with the loss of every step, to adapt the learning rate.
    """

    epochs: int
    select_by: tuple[str, ...]
    log_every: int = 10
    verbose: bool = True
    schedule: Callable[[float], None] | None = None


def fit(
    model: nn.Module,
    batches: Batches,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    evaluate: Callable[[], list[dict[str, float]]],
    options: FitOptions,
    trackers: list[Tracker],
) -> list[FitResult]:
    """Train a model, or R of them stacked (`glot.nn.stack`), and leave everything that was trained in the state of its selected epoch.

    Args:
        model: Batch -> output; may be a part of what the optimizer moves (a backbone sits behind `batches`).
        batches: one epoch of training batches each time it is iterated.
        loss: (output, labels) -> scalar, or (R,) of a stack.
        optimizer: over every parameter to train; those of a stack are (R, ...).
        evaluate: metrics of each model as it is now.
        options: see there.
        trackers: one a model; gets `loss/step` every few steps and `metrics/*` every epoch.

    Returns:
        One result per model.

    Raises:
        TrainingError: a loss or a weight is no longer finite; the step is named, and the weights of the best epoch so far are restored.
        DataError: there is no batch to train on.
    """
    keepers = [EpochKeeper() for _ in trackers]
    try:
        _train_epochs(model, batches, loss, optimizer, evaluate, options, trackers, keepers)
    except TrainingError as error:
        kept = [keeper.end().best.epoch for keeper in keepers if keeper.has_epoch]
        raise TrainingError(str(error), kept[0] if kept else None) from error
    return [keeper.end() for keeper in keepers]


def _train_epochs(
    model: nn.Module,
    batches: Batches,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    evaluate: Callable[[], list[dict[str, float]]],
    options: FitOptions,
    trackers: list[Tracker],
    keepers: list["EpochKeeper"],
) -> None:
    """All epochs, each added to the models' keepers.

    Raises:
        TrainingError: see `fit`.
    """
    step = 0
    for epoch in range(1, options.epochs + 1):
        clock = Clock("train", "evaluate")
        with clock.phase("train"):
            losses, step = _train_epoch(model, batches, loss, optimizer, options, trackers, (step, epoch))
        with clock.phase("evaluate"):
            scores = evaluate()
        for place, (keeper, tracker, mean_loss, metrics) in enumerate(zip(keepers, trackers, losses, scores, strict=True)):
            result = EpochResult(epoch, mean_loss, metrics, clock.seconds)
            tracker.log({"loss/epoch": mean_loss} | {f"metrics/{LOGGED.get(name, name)}": value for name, value in metrics.items()}, step)
            say(_epoch_line(result, options.epochs), options.verbose)
            moved = _moved(model, optimizer)
            keeper.add(result, options.select_by, [tensor[place] for tensor in moved] if len(keepers) > 1 else moved)
            if abs(mean_loss) > DIVERGED:
                warn(f"epoch {epoch}: the loss has diverged ({mean_loss:.3g}); a smaller --lr may help")


class EpochKeeper:
    """The epochs of one model, with a copy of its weights at the best."""

    def __init__(self) -> None:
        self._history: list[EpochResult] = []
        self._best: EpochResult | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []

    @property
    def has_epoch(self) -> bool:
        """Whether an epoch was finished."""
        return self._best is not None

    def add(self, result: EpochResult, select_by: tuple[str, ...], tensors: list[Tensor]) -> None:
        """An epoch, and the model's tensors as they are after it."""
        self._history.append(result)
        if self._best is None or not select_by or _score(result, select_by) > _score(self._best, select_by):
            self._best, self._kept = result, [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def end(self) -> FitResult:
        """All epochs; the tensors go back to the best one."""
        assert self._best is not None
        for tensor, value in self._kept:
            tensor.copy_(value)
        return FitResult(self._history, self._best, self._history[-1])


def _train_epoch(
    model: nn.Module,
    batches: Batches,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    options: FitOptions,
    trackers: list[Tracker],
    place: tuple[int, int],
) -> tuple[list[float], int]:
    """One pass from a place (steps so far, epoch); returns each model's mean loss over rows and the number of steps so far."""
    model.train()
    (step, epoch), total, rows = place, torch.zeros(()), 0
    first_bad = torch.full((), NEVER)  # stays on the device, like the loss: few synchronisations
    for batch in bar(batches, f"epoch {epoch}/{options.epochs}", "step", options.verbose):
        value = loss(model(batch), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        value.sum().backward()  # stacked models share no weight, so each gets the gradient of its own loss
        optimizer.step()
        if options.schedule is not None:
            options.schedule(float(value.detach()))
        step += 1
        total = value.detach() * len(batch) + total.to(value.device)  # stays on the device: one synchronisation an epoch
        rows += len(batch)
        bad_here = torch.where(torch.isfinite(value.detach()).all(), NEVER, step)
        first_bad = torch.minimum(first_bad.to(value.device), bad_here)
        if step % options.log_every == 0:
            _refuse_non_finite(int(first_bad))
            for tracker, own in zip(trackers, value.detach().reshape(-1).tolist(), strict=True):
                tracker.log({"loss/step": own}, step)
    if not rows:
        raise DataError("an epoch without a batch: every training row shares a text with every other, or there is one row alone; add rows")
    _refuse_non_finite(int(first_bad))
    if not all(bool(torch.isfinite(tensor).all()) for tensor in _moved(model, optimizer) if tensor.is_floating_point()):
        _refuse_non_finite(step, "a weight")
    return (total / rows).reshape(-1).tolist(), step


def _refuse_non_finite(step: int, what: str = "the loss") -> None:
    if step < NEVER:
        raise TrainingError(f"step {step}: {what} is not finite; try a smaller --lr")


def _score(result: EpochResult, select_by: tuple[str, ...]) -> float:
    """What picks the best epoch; an epoch without a number (a constant predictor's correlation) never wins."""
    values = [result.metrics[name] for name in select_by]
    mean = sum(values) / len(values) if values else 0.0
    return mean if math.isfinite(mean) else -math.inf


def _moved(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every tensor that training moves."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]] + list(model.buffers())


def _epoch_line(result: EpochResult, epochs: int) -> str:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    seconds = f"{result.seconds['train']:.1f} s + {result.seconds['evaluate']:.1f} s"
    return f"epoch {result.epoch}/{epochs}  loss {result.train_loss:.4f}  {metrics}  ({seconds})"
