"""Poolers without parameters."""

import torch
from torch import Tensor

from glot.nn.pooler import Pooler
from glot.nn.segment import segment_max, segment_mean, segment_sum
from glot.types import TokenBatch, send


class ClsPooler(Pooler):
    """The first token of each sentence, or with `last=True` the last (for decoders, whose last token has seen all others).

    Examples:
        >>> ClsPooler(384, last=True)(batch)
    """

    def __init__(self, in_dim: int, last: bool = False) -> None:
        super().__init__(in_dim, in_dim)
        self.last = last

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, d)."""
        rows = batch.ptr[1:] - 1 if self.last else batch.ptr[:-1]
        return batch.tokens[send(rows, batch.tokens.device)]


class MeanPooler(Pooler):
    """The mean of all real tokens, special tokens included.

    Examples:
        >>> MeanPooler(384)(batch)
    """

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, in_dim)

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, d)."""
        return segment_mean(batch.tokens, batch)


class WeightedMeanPooler(Pooler):
    """The mean with weights 1, 2, .., n by position, because later tokens of a decoder have seen more.

    Source: Muennighoff 2022, SGPT.

    Examples:
        >>> WeightedMeanPooler(384)(batch)
    """

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, in_dim)

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, d)."""
        tokens = batch.tokens
        starts = send(batch.ptr[:-1], tokens.device)[batch.segment]
        position = torch.arange(1, len(tokens) + 1, device=tokens.device) - starts
        lengths = batch.counts
        return segment_sum(tokens, batch, position.to(tokens.dtype)) / (lengths * (lengths + 1) / 2).to(tokens.dtype).unsqueeze(1)


class MaxPooler(Pooler):
    """The element-wise maximum over all real tokens.

    Examples:
        >>> MaxPooler(384)(batch)
    """

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, in_dim)

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, d)."""
        return segment_max(batch.tokens, batch)


class StdPooler(Pooler):
    """The mean and the standard deviation of all real tokens. out_dim = 2 d; the deviation of a single token is 0.

    Source: Snyder et al. 2018, x-vectors, section 2.1 (statistics pooling).

    Examples:
        >>> StdPooler(384)(batch)
    """

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, 2 * in_dim)

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, 2 d)."""
        mean = segment_mean(batch.tokens, batch)
        variance = segment_mean((batch.tokens - mean[batch.segment]).square(), batch)
        moves = variance > 0  # the root has no gradient at 0
        deviation = torch.where(moves, torch.where(moves, variance, 1.0).sqrt(), 0.0)
        return torch.cat([mean, deviation], 1)
