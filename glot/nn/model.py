"""SentenceModel: a pooler and a head, without the backbone, so that training needs only token states and a checkpoint is small."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glot.nn.pooler import Pooler
from glot.types import Batch


class SentenceModel(nn.Module):
    """One pooler, applied to each side of a batch (a pooler of pairs: to both), and one head, applied to all vectors of a row together.

    Examples:
        >>> SentenceModel(MeanPooler(384), SingleHead(384, 2))(Batch((tokens,), labels))
    """

    def __init__(self, pooler: Pooler, head: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """The head's output: (B, C) logits, (B,) cosines or (B, B + M) dot products."""
        vectors = self.vectors(batch)
        if batch.shares:  # every rank computes the loss of the whole batch, as one process does
            vectors = [gather_rows(rows, counts, batch.rank) for rows, counts in zip(vectors, batch.shares, strict=False)]
        return self.head(*vectors)

    def vectors(self, batch: Batch) -> list[Tensor]:
        """What the head takes: (B, D) of each side, or the features (B, F) of each pair."""
        return [self.pooler(*batch.sides)] if self.pooler.sides == 2 else [self.pooler(side) for side in batch.sides]

    @property
    def trainable_params(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


class InBfloat16(nn.Module):
    """A model whose matrix products are computed in bfloat16; weights, gradients and the output stay float32.

    Args:
        model: Batch -> output.
        device: its kind, as torch names it.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        super().__init__()
        self.model, self._device = model, device

    def forward(self, batch: Batch) -> Tensor:
        """The model's output, float32."""
        with torch.autocast(self._device, torch.bfloat16):
            output: Tensor = self.model(batch)
        return output.float()


def gather_rows(rows: Tensor, counts: Sequence[int], rank: int) -> Tensor:
    """All-gather with gradient: the rows of all ranks in rank order, (n, D) -> (sum of counts, D).

    Every rank must compute the same loss from them. Each rank back-propagates the full loss, so the summed gradients are world_size times
    too large; DistributedDataParallel's mean divides by world_size.

    Args:
        rows: this rank's rows. A rank whose count is 0 passes one row, so that it takes part in the collective calls; it is dropped here.
        counts: rows per rank.
        rank: this process's rank.
    """
    own = rows[: counts[rank]]
    parts = _Gather.apply(F.pad(own, (0, 0, 0, max(counts) - len(own))), rank, len(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _Gather(torch.autograd.Function):
    """All-gather for `gather_rows`: rows (n, D), the same n on every rank -> one (n, D) per rank.

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
