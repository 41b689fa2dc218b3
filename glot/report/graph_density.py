"""Density of the threshold graph by tau: edges, degrees, tokens without neighbours."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from glot.nn.graph import GraphRule, TokenGraph
from glot.types import TokenBatch, TokenSource

NEARLY = 0.02
"""A graph that lacks less than this share of its pairs is nearly complete; one that has less than it is nearly empty."""


class Census(NamedTuple):
    """Statistics of the graph over all sentences of a sample.

    Attributes:
        tau: the threshold.
        density: share of joined pairs among all pairs of different tokens of one sentence.
        degree: mean number of neighbours per token, self-loops not counted.
        isolated: share of tokens without neighbours.
    """

    tau: float
    density: float
    degree: float
    isolated: float

    @property
    def verdict(self) -> str:
        """`nearly complete`, `nearly empty`, or an empty string."""
        if self.density > 1 - NEARLY:
            return "nearly complete"
        return "nearly empty" if self.density < NEARLY else ""


class Counter:
    """Counts edges and isolated tokens over batches, for a fixed list of thresholds.

    Examples:
        >>> counter = Counter([0.3, 0.6])
        >>> counter.add(batch)
    """

    def __init__(self, taus: list[float]) -> None:
        self.taus = taus
        self._edges = torch.zeros(len(taus), dtype=torch.int64)
        self._isolated = torch.zeros(len(taus), dtype=torch.int64)
        self.tokens = self._pairs = 0

    @torch.no_grad()
    def add(self, batch: TokenBatch) -> None:
        """Count the graphs of one batch at every threshold; the cosines are computed once."""
        for block in TokenGraph(batch, GraphRule()).blocks:
            similar = block.view().cosines(0, block.index.shape[1])
            real = block.mask.unsqueeze(1) & block.mask.unsqueeze(2)
            real.diagonal(dim1=1, dim2=2).fill_(False)
            for index, tau in enumerate(self.taus):
                degree = ((similar > tau) & real).sum(2)[block.mask]
                self._edges[index] += int(degree.sum())
                self._isolated[index] += int((degree == 0).sum())
            self.tokens += int(block.lengths.sum())
            self._pairs += int((block.lengths * (block.lengths - 1)).sum())

    def census(self) -> list[Census]:
        """One row per threshold."""
        rows = zip(self.taus, self._edges.tolist(), self._isolated.tolist(), strict=True)
        tokens, pairs = max(1, self.tokens), max(1, self._pairs)
        return [Census(tau, edges / pairs, edges / tokens, isolated / tokens) for tau, edges, isolated in rows]


SAMPLED, MOST_TOKENS = 256, 1 << 15
"""Texts, and tokens of them, that the density of a run's graph is taken from."""


def sample_density(tokens: TokenSource, tau: float, mixed: Callable[[TokenBatch], list[TokenBatch]] | None = None) -> Census:
    """Density of the threshold graph at one tau on some texts of a source, evenly spaced.

    Args:
        tokens: the source.
        tau: the threshold.
        mixed: with several hidden layers, what the pooler makes of a batch before its graph (`LayeredPooler.mixed`).
    """
    counter, read = Counter([tau]), 0
    for row in np.linspace(0, len(tokens) - 1, min(SAMPLED, len(tokens))).round().astype(np.int64):
        batch = tokens.gather(np.array([row]))
        read += len(batch.tokens)
        if read > MOST_TOKENS and counter.tokens:
            break
        for part in [batch] if mixed is None else mixed(batch):
            counter.add(part)
    return counter.census()[0]
