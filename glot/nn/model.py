"""Pooler and head together. There is no backbone inside, so a checkpoint is small and training needs token states alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glot.nn.pooler import Pooler
from glot.types import Batch


class SentenceModel(nn.Module):
    """Each side of a batch through the pooler, all sides through the head."""

    def __init__(self, pooler: Pooler, head: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """The head's output: (B, C) logits or (B,) cosines."""
        vectors = [self.pooler(side) for side in batch.sides]
        if batch.shares:  # the head sees the whole batch, so that the loss is that of one process
            vectors = [gather_rows(rows, counts, batch.rank) for rows, counts in zip(vectors, batch.shares, strict=True)]
        return self.head(*vectors)

    @property
    def trainable_params(self) -> int:
        """Number of parameters that training moves."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def gather_rows(rows: Tensor, counts: Sequence[int], rank: int) -> Tensor:
    """The rows of all processes in the order of their ranks, with gradient: (n, D) -> (sum of counts, D).

    Every process must compute the same loss from them. Each rank back-propagates the full loss, so the summed gradients are world_size
    too large; the mean of DistributedDataParallel divides by world_size.

    Args:
        rows: of this process; more than its count where it had no row of its own and took one to keep in step.
        counts: rows of each process.
        rank: of this process.
    """
    own = rows[: counts[rank]]
    parts = _Gather.apply(F.pad(own, (0, 0, 0, max(counts) - len(own))), rank, len(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _Gather(torch.autograd.Function):
    """Rows (n, D), as many in every process -> those of each process, as `gather_rows` says.

    Torch's own differentiable all-gather (torch.distributed.nn.functional) gives the same gradient, but warns that it is deprecated.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, count: int) -> tuple[Tensor, ...]:
        ctx.rank, ctx.count = rank, count
        parts = [torch.empty_like(rows) for _ in range(count)]
        torch.distributed.all_gather(parts, rows.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[ctx.rank] * ctx.count, None, None
