"""Padding: sentences of a packed batch in groups, each group padded to its longest sentence."""

from functools import cached_property

import torch
from torch import Tensor

from glot.nn.places import CollectRows, SpreadRows, cut, join
from glot.types import TokenBatch


class Padding:
    """A packed batch in groups of b sentences of up to n tokens.

    Args:
        batch: (N, d).
        groups: the sentences of each group; every sentence stands in exactly one.

    Attributes:
        index: per group (b, n) int64, position of each token in the batch; padding repeats the sentence's first token.
        mask: per group (b, n) bool, true for real tokens.
        lengths: per group (b,) int64 on the CPU.

    Examples:
        >>> Padding(batch, group_by_length(batch.lengths)).pad(batch.tokens)
    """

    def __init__(self, batch: TokenBatch, groups: list[Tensor]) -> None:
        self.batch = batch
        self.index: list[Tensor] = []
        self.mask: list[Tensor] = []
        self.lengths = [batch.lengths[rows] for rows in groups]
        for rows, lengths in zip(groups, self.lengths, strict=True):
            steps = torch.arange(int(lengths.max()))
            mask = steps < lengths.unsqueeze(1)
            index = batch.ptr[rows].unsqueeze(1) + torch.where(mask, steps, 0)
            self.index.append(index.to(batch.tokens.device))
            self.mask.append(mask.to(batch.tokens.device))

    @cached_property
    def places(self) -> Tensor:
        """(N,) int64: position of each packed token in the concatenation of all groups, padding included."""
        places = torch.empty(len(self.batch.tokens), dtype=torch.int64, device=self.batch.tokens.device)
        start = 0
        for index, mask in zip(self.index, self.mask, strict=True):
            real = mask.flatten()
            places[index.flatten()[real]] = start + real.nonzero().squeeze(1)
            start += len(real)
        return places

    def pad(self, states: Tensor) -> list[Tensor]:
        """Packed states (N, width) -> one (b, n, width) per group, zero on padding."""
        sizes = [index.numel() for index in self.index]
        flat = SpreadRows.apply(states, self.places, sum(sizes))
        return [part.unflatten(0, index.shape) for part, index in zip(cut(flat, sizes), self.index, strict=True)]

    def unpad(self, groups: list[Tensor]) -> Tensor:
        """The inverse of `pad`."""
        return CollectRows.apply(join([group.flatten(0, 1) for group in groups]), self.places)
