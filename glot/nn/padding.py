"""Padding: sentences of a packed batch in groups, each group padded to its longest sentence."""

from functools import cached_property

import torch
from torch import Tensor

from glot.nn.places import CollectRows, SpreadRows, cut, join
from glot.types import TokenBatch, send


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
        >>> Padding(batch, group_by_length(batch.lengths, batch.tokens.device)).pad(batch.tokens)
    """

    def __init__(self, batch: TokenBatch, groups: list[Tensor]) -> None:
        self.batch, device = batch, batch.tokens.device
        self.lengths = [batch.lengths[rows] for rows in groups]
        indices, masks = [], []
        for rows, lengths in zip(groups, self.lengths, strict=True):
            steps = torch.arange(int(lengths.max()))
            mask = steps < lengths.unsqueeze(1)
            indices.append(batch.ptr[rows].unsqueeze(1) + torch.where(mask, steps, 0))
            masks.append(mask)
        # planned on the CPU and sent at once: on a card each choice by a mask would wait for it
        self._flat, self._real = join([index.flatten() for index in indices]), join([mask.flatten() for mask in masks])
        sizes = [mask.numel() for mask in masks]
        self.index = [part.view(mask.shape) for part, mask in zip(cut(send(self._flat, device), sizes), masks, strict=True)]
        self.mask = [part.view(mask.shape) for part, mask in zip(cut(send(self._real, device), sizes), masks, strict=True)]

    @cached_property
    def places(self) -> Tensor:
        """(N,) int64: position of each packed token in the concatenation of all groups, padding included."""
        places, real = torch.empty(len(self.batch.tokens), dtype=torch.int64), self._real.nonzero().squeeze(1)
        places[self._flat.index_select(0, real)] = real
        return send(places, self.batch.tokens.device)

    def pad(self, states: Tensor) -> list[Tensor]:
        """Packed states (N, width) -> one (b, n, width) per group, zero on padding."""
        sizes = [index.numel() for index in self.index]
        flat = SpreadRows.apply(states, self.places, sum(sizes))
        return [part.unflatten(0, index.shape) for part, index in zip(cut(flat, sizes), self.index, strict=True)]

    def unpad(self, groups: list[Tensor]) -> Tensor:
        """The inverse of `pad`."""
        return CollectRows.apply(join([group.flatten(0, 1) for group in groups]), self.places)
