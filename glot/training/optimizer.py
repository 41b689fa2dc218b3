"""What moves the weights of a run: optimizer, learning rate over the steps, and how long."""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from glot.data.tasks import TaskSpec
from glot.nn.model import SentenceModel
from glot.nn.stack import StackedModel
from glot.settings.config import RunConfig
from glot.settings.effects import has_gradient
from glot.training.train import FitOptions, Schedule
from glot.types import TokenSource


def _without_compiler(kind: type[torch.optim.Adam]) -> type[torch.optim.Adam]:
    """The optimizer with its methods as torch wrote them, without the wrappers that import `torch._dynamo`.

    These wrappers only matter to `torch.compile`, which nothing here uses. The import takes a second of every process that trains.
    """
    names = ("add_param_group", "state_dict", "load_state_dict", "zero_grad", "step")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"]), "__module__": __name__})


OPTIMIZERS: dict[str, type[torch.optim.Adam]] = {
    "adam": _without_compiler(torch.optim.Adam),
    "adamw": _without_compiler(torch.optim.AdamW),
}
"""`--optimizer` -> class."""
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
"""`--lr_schedule` -> factor of the learning rate by the share of the steps behind the warm-up that is done."""


def make_optimizer(config: RunConfig, model: SentenceModel | StackedModel, tokens: TokenSource) -> torch.optim.Optimizer:
    """The optimizer over pooler and head, and over the backbone at its own rate when it is fine-tuned."""
    groups = [{"params": list(model.parameters()), "lr": config.train.lr}]
    if tokens.trained:
        groups.append({"params": tokens.trained, "lr": config.backbone.trained_lr})
    kind = OPTIMIZERS[config.train.optimizer]
    return kind(groups, weight_decay=config.train.weight_decay, fused=True)  # one pass over the weights instead of ten


def learning_rate_factor(step: int, steps: int, warmup: int, shape: Callable[[float], float]) -> float:
    """Factor of the learning rate before a step: it rises over `warmup` steps, then follows the shape to the end of `steps`.

    Source: `transformers.get_scheduler`, whose schedules of the same names these are.
    """
    if step < warmup:
        return step / warmup
    return max(0.0, shape(min(1.0, (step - warmup) / max(1, steps - warmup))))


class StepSchedule(LambdaLR):
    """A `train.Schedule` that follows the number of steps; the loss is ignored."""

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> None:
        super().__init__(optimizer, factor)

    def step(self, metrics: Any = None) -> None:
        """One step further."""
        super().step()


def make_schedule(config: RunConfig, task: TaskSpec, optimizer: torch.optim.Optimizer, steps: int) -> Schedule | None:
    """The learning rate over `steps` steps; None = it stays."""
    train = config.train
    if train.lr_schedule == "constant" and not train.warmup_ratio:  # the release's
        return None if task.patience is None else ReduceLROnPlateau(optimizer, patience=task.patience)
    warmup = math.ceil(train.warmup_ratio * steps)
    return StepSchedule(optimizer, partial(learning_rate_factor, steps=steps, warmup=warmup, shape=SHAPES[train.lr_schedule]))


def fit_options(config: RunConfig, task: TaskSpec, optimizer: torch.optim.Optimizer, steps: int) -> FitOptions:
    """How `fit` trains; `steps` are those of one epoch. Where nothing takes a gradient, for no epoch."""
    epochs = config.train.epochs if has_gradient(config) else 0
    schedule = make_schedule(config, task, optimizer, steps * epochs)
    return FitOptions(epochs, config.output.log_every, config.output.verbose, schedule, config.train.grad_clip)


def moved_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Every tensor that training moves: what the optimizer steps, and the model's running statistics."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]] + list(model.buffers())
