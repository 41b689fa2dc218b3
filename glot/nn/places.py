"""Scatter and gather of packed rows, which pad and unpad sentences; split and concatenation without needless copies.

No two rows share a place, so the gradients are plain copies. With plain indexing autograd would accumulate them row by row.
"""

import inspect
from typing import Any

import torch
from torch import Tensor


def cut(rows: Tensor, sizes: list[int], dim: int = 0) -> tuple[Tensor, ...]:
    """`rows.split(sizes, dim)`. A single part is `rows` itself: through `split`, autograd would copy its gradient."""
    return (rows,) if len(sizes) == 1 else rows.split(sizes, dim)


def join(parts: list[Tensor], dim: int = 0) -> Tensor:
    """`torch.cat(parts, dim)`; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _spread(rows: Tensor, places: Tensor, total: int) -> Tensor:
    return rows.new_zeros(total, rows.shape[1]).index_copy_(0, places, rows)


class SpreadRows(torch.autograd.Function):
    """rows (N, w), places (N,), total -> (total, w) with row i at `places[i]`, zeros elsewhere."""

    @staticmethod
    def forward(rows: Tensor, places: Tensor, total: int) -> Tensor:
        return _spread(rows, places, total)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None, None], rows: Tensor, places: Tensor, total: int) -> tuple[Tensor, int]:
        """Stacked states (`glot.nn.stack`) are moved as one table of wider rows."""
        wide = rows.movedim(in_dims[0], 1)
        return SpreadRows.apply(wide.flatten(1), places, total).view(total, *wide.shape[1:]).movedim(1, 0), 0


class CollectRows(torch.autograd.Function):
    """flat (total, w), places (N,) -> the rows at `places` (N, w): the inverse of `SpreadRows`."""

    @staticmethod
    def forward(flat: Tensor, places: Tensor) -> Tensor:
        return flat.index_select(0, places)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.total = inputs[0].shape[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _spread(grad, ctx.saved_tensors[0], ctx.total), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], flat: Tensor, places: Tensor) -> tuple[Tensor, int]:
        """As in `SpreadRows`."""
        wide = flat.movedim(in_dims[0], 1)
        return CollectRows.apply(wide.flatten(1), places).view(len(places), *wide.shape[1:]).movedim(1, 0), 0


for _function in (SpreadRows, CollectRows):  # `apply` inspects the signature at each call; a stored one is cheaper
    setattr(_function.forward, "__signature__", inspect.signature(_function.forward))  # noqa: B010 - plain assignment fails type checks
