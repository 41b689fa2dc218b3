"""The training loop: the only place in the project that steps an optimizer."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glot.errors import DataError
from glot.progress import Clock, bar, say
from glot.types import Batches, EpochResult, FitResult, Tracker

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
    evaluate: Callable[[], dict[str, float]],
    options: FitOptions,
    tracker: Tracker,
) -> FitResult:
    """Train, and leave everything that was trained in the state of the selected epoch.

    Args:
        model: Batch -> output; may be a part of what the optimizer moves (a backbone sits behind `batches`).
        batches: one epoch of training batches each time it is iterated.
        loss: (output, labels) -> scalar.
        optimizer: over every parameter to train.
        evaluate: metrics of the model as it is now.
        options: see there.
        tracker: gets `loss/step` every few steps and `metrics/*` every epoch.
    """
    history: list[EpochResult] = []
    best: EpochResult | None = None
    step = 0
    for epoch in range(1, options.epochs + 1):
        clock = Clock("train", "evaluate")
        with clock.phase("train"):
            mean_loss, step = _train_epoch(model, batches, loss, optimizer, options, tracker, step, epoch)
        with clock.phase("evaluate"):
            metrics = evaluate()
        result = EpochResult(epoch, mean_loss, metrics, clock.seconds)
        history.append(result)
        tracker.log({"loss/epoch": mean_loss} | {f"metrics/{LOGGED.get(name, name)}": value for name, value in metrics.items()}, step)
        say(_epoch_line(result, options.epochs), options.verbose)
        if best is None or _score(result, options.select_by) > _score(best, options.select_by) or not options.select_by:
            best, kept = result, _snapshot(model, optimizer)
    assert best is not None
    _restore(kept)
    return FitResult(history, best, history[-1])


def _train_epoch(
    model: nn.Module,
    batches: Batches,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    options: FitOptions,
    tracker: Tracker,
    step: int,
    epoch: int,
) -> tuple[float, int]:
    """One pass; returns the mean loss over rows and the number of steps so far."""
    model.train()
    total, rows = 0.0, 0
    for batch in bar(batches, f"epoch {epoch}/{options.epochs}", "step", options.verbose):
        value = loss(model(batch), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        if options.schedule is not None:
            options.schedule(float(value.detach()))
        step += 1
        total = total + value.detach() * len(batch)  # stays on the device: one synchronisation an epoch
        rows += len(batch)
        if step % options.log_every == 0:
            tracker.log({"loss/step": float(value.detach())}, step)
    if not rows:
        raise DataError("an epoch without a batch: every training row shares a text with every other, or there is one row alone; add rows")
    return float(total) / rows, step


def _score(result: EpochResult, select_by: tuple[str, ...]) -> float:
    """What picks the best epoch; an epoch without a number (a constant predictor's correlation) never wins."""
    values = [result.metrics[name] for name in select_by]
    mean = sum(values) / len(values) if values else 0.0
    return mean if math.isfinite(mean) else -math.inf


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Every tensor that training moves, with a copy of its value."""
    moved = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [(tensor, tensor.detach().clone()) for tensor in [*moved, *model.buffers()]]


@torch.no_grad()
def _restore(kept: list[tuple[Tensor, Tensor]]) -> None:
    for tensor, value in kept:
        tensor.copy_(value)


def _epoch_line(result: EpochResult, epochs: int) -> str:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    seconds = f"{result.seconds['train']:.1f} s + {result.seconds['evaluate']:.1f} s"
    return f"epoch {result.epoch}/{epochs}  loss {result.train_loss:.4f}  {metrics}  ({seconds})"
