"""What a model's blocks are given and give: hooks that hear it, and its shapes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def hear(kind: str, index: int, heard: list[tuple[str, int, Any]]) -> Callable[..., None]:
    """A hook that appends a block's input (`in`) or output (`out`) to `heard`."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
        given = output[0] if isinstance(output, tuple) and output else output
        heard.append((kind, index, first_tensor(args, kwargs) if kind == "in" else given))

    return hook


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The states among a block's arguments: the first positional one, or the keyword `hidden_states` or `x`."""
    return args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))


def has_shape(state: Any, ids: Tensor) -> bool:
    """Whether `state` is (B, L, d), one state per token of `ids`."""
    return isinstance(state, Tensor) and state.dim() == 3 and state.shape[:2] == ids.shape


def equal(one: Tensor, other: Tensor | None) -> bool:
    """Whether there is another, and it is the same."""
    return other is not None and one.shape == other.shape and torch.equal(one, other)
