"""The epochs of a training: each scored and logged, the best one kept. Of one model, or of several that are stacked."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from glot.progress import Clock, say
from glot.types import EpochResult, FitResult, Tracker

LOGGED = {"accuracy": "acc", "accuracy_mm": "acc_mm"}
"""Metric names that trackers know under another name (`metrics/acc`); the others keep theirs."""


@dataclass
class EpochKeeper:
    """The epochs of one model, with a copy of its weights at the best.

    Args:
        tensors: every tensor that training moves.
        select_by: metrics whose mean picks the epoch; empty = the last.
        tracker: gets `loss/step` every few steps and `metrics/*` every epoch.
        epochs: how many there will be, for the line per epoch.
        verbose: whether there is such a line.
        patience: epochs without a better one after which further ones do not count; 0 = all count.
    """

    tensors: list[Tensor]
    select_by: tuple[str, ...]
    tracker: Tracker
    epochs: int
    verbose: bool = True
    patience: int = 0
    history: list[EpochResult] = field(default_factory=list)
    _lines: int = 0
    _step: int = 0
    _best: EpochResult | None = None
    _kept: list[Tensor] = field(default_factory=list)

    @property
    def result(self) -> FitResult:
        """All epochs, the selected one and the last; where nothing was trained, epoch 0."""
        if self._best is None:
            nothing = EpochResult(0, math.nan, {}, {"train": 0.0, "evaluate": 0.0})
            return FitResult([], nothing, nothing)
        return FitResult(self.history, self._best, self.history[-1])

    @property
    def is_over(self) -> bool:
        """Whether the best epoch is `patience` epochs back."""
        return bool(self.patience and self._best is not None and len(self.history) - self._best.epoch >= self.patience)

    def log_step(self, step: int, loss: Tensor) -> None:
        """The loss of a step."""
        self._log({"loss/step": float(loss)}, step)

    def begin(self, state: dict[str, Any] | None) -> None:
        """Take up a `state`, with the tensors as they were then; None = nothing was trained yet."""
        state = state or {"history": [], "lines": 0, "step": 0, "best": None, "kept": None}
        self.history = [EpochResult(**epoch) for epoch in state["history"]]
        self._lines, self._step, self._best = state["lines"], state["step"], None
        if state["best"] is not None:
            self._best, kept = self.history[state["best"]], state["kept"] or self.tensors
            self._kept = [tensor.detach().to("cpu", copy=True) for tensor in kept]
        self.tracker.go_on(self._lines, self._step)

    def state(self) -> dict[str, Any]:
        """What `begin` takes up. Weights of the best epoch are left out where they are the present ones."""
        present = self._best is not None and all(torch.equal(kept, own.cpu()) for kept, own in zip(self._kept, self.tensors, strict=True))
        return {
            "history": [asdict(epoch) for epoch in self.history],
            "lines": self._lines,
            "step": self._step,
            "best": None if self._best is None else self.history.index(self._best),
            "kept": None if present else self._kept,
        }

    def _log(self, values: dict[str, float], step: int) -> None:
        self._lines, self._step = self._lines + 1, step
        self.tracker.log(values, step)

    def add(self, epoch: EpochResult, step: int) -> None:
        """Log an epoch, and keep the weights where it is the best so far. In a stack, others may still train when this model is done."""
        if self.is_over:
            return
        metrics = {f"metrics/{LOGGED.get(name, name)}": value for name, value in epoch.metrics.items()}
        self._log({"loss/epoch": epoch.train_loss} | metrics, step)
        say(_epoch_line(epoch, self.epochs), self.verbose)
        self.history.append(epoch)
        best = -math.inf if self._best is None else self._score(self._best)
        if not self.select_by or self._score(epoch) > best or best == -math.inf:  # without any number, the last one is kept
            self._best, self._kept = epoch, [tensor.detach().to("cpu", copy=True) for tensor in self.tensors]

    @torch.no_grad()
    def restore(self) -> int | None:
        """The tensors go back to the best epoch; returns its number, None where no epoch was finished."""
        if self._best is None:
            return None
        for tensor, value in zip(self.tensors, self._kept, strict=True):
            tensor.copy_(value)
        return self._best.epoch

    def _score(self, epoch: EpochResult) -> float:
        """What picks the best epoch; an epoch without a number (a constant predictor's correlation) never wins."""
        values = [epoch.metrics[name] for name in self.select_by]
        mean = sum(values) / len(values) if values else 0.0
        return mean if math.isfinite(mean) else -math.inf


@dataclass
class ModelRecord:
    """The record of one model's training.

    Args:
        keeper: of its epochs.
        evaluate: metrics of the model as it is now.
    """

    keeper: EpochKeeper
    evaluate: Callable[[], dict[str, float]]

    def begin(self, state: Any) -> None:
        """See `train.Record`."""
        self.keeper.begin(state)

    def state(self) -> Any:
        """See `train.Record`."""
        return self.keeper.state()

    def log_step(self, step: int, loss: Tensor) -> None:
        """See `train.Record`."""
        self.keeper.log_step(step, loss)

    def end_epoch(self, epoch: int, step: int, loss: Tensor, clock: Clock) -> None:
        """See `train.Record`."""
        with clock.phase("evaluate"):
            metrics = self.evaluate()
        self.keeper.add(EpochResult(epoch, float(loss), metrics, clock.seconds), step)

    def restore(self) -> int | None:
        """See `train.Record`."""
        return self.keeper.restore()

    def is_over(self) -> bool:
        """See `train.Record`."""
        return self.keeper.is_over


@dataclass
class StackRecord:
    """The record of R models that train side by side: losses are (R,).

    Args:
        keepers: one per model, over its part of the stacked tensors.
        evaluate: metrics of each model as it is now.
    """

    keepers: list[EpochKeeper]
    evaluate: Callable[[], list[dict[str, float]]]

    def begin(self, state: Any) -> None:
        """See `train.Record`."""
        for keeper, own in zip(self.keepers, state or [None] * len(self.keepers), strict=True):
            keeper.begin(own)

    def state(self) -> Any:
        """See `train.Record`."""
        return [keeper.state() for keeper in self.keepers]

    def log_step(self, step: int, loss: Tensor) -> None:
        """See `train.Record`."""
        for keeper, own in zip(self.keepers, loss, strict=True):
            if not keeper.is_over:  # others may still train when this model is done
                keeper.log_step(step, own)

    def end_epoch(self, epoch: int, step: int, loss: Tensor, clock: Clock) -> None:
        """See `train.Record`."""
        with clock.phase("evaluate"):
            scores = self.evaluate()
        for keeper, own, metrics in zip(self.keepers, loss.tolist(), scores, strict=True):
            keeper.add(EpochResult(epoch, own, metrics, clock.seconds), step)

    def restore(self) -> int | None:
        """See `train.Record`; the number is the first model's."""
        epochs = [keeper.restore() for keeper in self.keepers]
        return epochs[0]

    def is_over(self) -> bool:
        """See `train.Record`; for the last of the models."""
        return all(keeper.is_over for keeper in self.keepers)


def _epoch_line(result: EpochResult, epochs: int) -> str:
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    seconds = f"{result.seconds['train']:.1f} s + {result.seconds['evaluate']:.1f} s"
    return f"epoch {result.epoch}/{epochs}  loss {result.train_loss:.4f}  {metrics}  ({seconds})"
