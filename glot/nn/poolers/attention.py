"""Attention poolers without a graph, as baselines for GLOT."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glot.nn.pooler import Pooler
from glot.nn.segment import segment_mean, segment_softmax, segment_sum
from glot.types import TokenBatch

MOST_HEADS = 8


class PmaPooler(Pooler):
    """Pooling by multi-head attention: one learned query per head attends to all tokens of the sentence. out_dim = d.

    Source: Lee et al. 2019, Set Transformer, section 3.2 (one seed vector, no feed-forward block).

    Examples:
        >>> PmaPooler(384)(batch)
    """

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, in_dim)
        self.heads = math.gcd(in_dim, MOST_HEADS)
        self.query = nn.Parameter(torch.empty(self.heads, in_dim // self.heads))
        self.key = nn.Linear(in_dim, in_dim)
        self.value = nn.Linear(in_dim, in_dim)
        self.out = nn.Linear(in_dim, in_dim)
        nn.init.normal_(self.query, std=1.0)

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, d)."""
        width = self.query.shape[1]
        keys = self.key(batch.tokens).unflatten(1, (self.heads, width))
        values = self.value(batch.tokens).unflatten(1, (self.heads, width))
        scores = (keys * self.query).sum(2) / math.sqrt(width)
        heads = [segment_sum(values[:, head], batch, segment_softmax(scores[:, head], batch)) for head in range(self.heads)]
        return self.out(torch.cat(heads, 1))


class LatentPooler(Pooler):
    """Latent attention: every token attends to a learned dictionary of `num_latents` rows, then an MLP, then the mean. out_dim = d.

    Source: Lee et al. 2024, NV-Embed, section 3.2.

    Examples:
        >>> LatentPooler(384, num_latents=128)(batch)
    """

    def __init__(self, in_dim: int, num_latents: int) -> None:
        super().__init__(in_dim, in_dim)
        self.latents = nn.Parameter(torch.empty(num_latents, in_dim))
        self.mlp = nn.Sequential(nn.Linear(in_dim, in_dim), nn.GELU(), nn.Linear(in_dim, in_dim))
        nn.init.normal_(self.latents, std=1 / math.sqrt(in_dim))

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, d)."""
        found = F.softmax(batch.tokens @ self.latents.T / math.sqrt(self.in_dim), dim=1) @ self.latents
        return segment_mean(found + self.mlp(found), batch)


class GatedPooler(Pooler):
    """The mean, moved by gated attention readouts: z = mean + sum_k g_k (r_k - mean), r_k the weighted mean of head k. out_dim = d.

    The gates g start at 0, so training begins at the mean. Values are the tokens themselves: d weights and two numbers per head.

    Source: ours. The readout of a head is that of AdaPool (GLOT paper, section 4) with a linear score; gates at zero as in ReZero
    (Bachlechner et al. 2021).

    Examples:
        >>> GatedPooler(384)(batch)
    """

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, in_dim)
        self.score = nn.Linear(in_dim, MOST_HEADS)
        self.gate = nn.Parameter(torch.zeros(MOST_HEADS))
        nn.init.normal_(self.score.weight, std=1 / math.sqrt(in_dim))

    def readout(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """(B, d), and the weight of each token (N,): they sum to one per sentence, and may be below zero."""
        scores = self.score(batch.tokens)
        heads = torch.stack([segment_softmax(scores[:, head], batch) for head in range(MOST_HEADS)], 1)
        even = 1 / batch.counts.to(scores.dtype)[batch.segment]
        weights = even + (heads - even.unsqueeze(1)) @ self.gate
        return segment_sum(batch.tokens, batch, weights), weights

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, d)."""
        return self.readout(batch)[0]
