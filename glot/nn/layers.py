"""LayeredPooler: any pooler on the states of several hidden layers."""

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from glot.nn.pooler import Pooler
from glot.types import TokenBatch

WIDEST = 10.0
"""Standardised states are cut to this many deviations: some models have dimensions with values a thousand times the usual."""
NORMAL_RANGE = 1.349
"""Interquartile range of the normal distribution with deviation 1."""


class LayerMix(NamedTuple):
    """How the states of m layers become what poolers take.

    Attributes:
        width: (m, d) -> the width that a pooler takes.
        poolers: m -> number of poolers, whose results stand side by side.
        has_weights: whether the layers are weighted.
    """

    width: Callable[[int, int], int]
    poolers: Callable[[int], int]
    has_weights: bool = False


LAYER_MIXES: dict[str, LayerMix] = {
    "concat": LayerMix(lambda m, d: m * d, lambda m: 1),
    "scalar": LayerMix(lambda m, d: d, lambda m: 1, has_weights=True),
    "stack": LayerMix(lambda m, d: d, lambda m: m),
}
"""`--layer_mix` -> how: one pooler on all layers' states side by side, one on their weighted sum, or one for each layer."""


class LayeredPooler(Pooler):
    """Tokens with the states of m layers side by side, (N, m d) -> (B, D).

    States are standardised first: each dimension of each layer by its median and interquartile range over training tokens (`fit`), then
    cut to `WIDEST` deviations. Without this the layer with the largest numbers would decide cosines and sums.

    Source: the weighted sum is that of ELMo (Peters et al. 2018, section 3.2) without its common factor.

    Args:
        build: width -> a fresh pooler.
        in_dim: m d.
        layers: m.
        mix: a name of `LAYER_MIXES`.

    Examples:
        >>> LayeredPooler(MeanPooler, 7 * 384, layers=7, mix="scalar")(batch)
    """

    center: Tensor
    scale: Tensor

    def __init__(self, build: Callable[[int], Pooler], in_dim: int, layers: int, mix: str) -> None:
        kind, width = LAYER_MIXES[mix], in_dim // layers
        inner = [build(kind.width(layers, width)) for _ in range(kind.poolers(layers))]
        super().__init__(in_dim, sum(pooler.out_dim for pooler in inner))
        self.layers, self.mix, self.sides = layers, mix, inner[0].sides
        self.poolers = nn.ModuleList(inner)
        self.logits = nn.Parameter(torch.zeros(layers)) if kind.has_weights else None
        self.register_buffer("center", torch.zeros(in_dim))
        self.register_buffer("scale", torch.ones(in_dim))

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Take medians and interquartile ranges from training tokens (n, m d). A dimension that hardly changes keeps scale 1."""
        low, middle, high = np.quantile(tokens.float().cpu().numpy(), (0.25, 0.5, 0.75), axis=0)  # by selection; torch sorts
        spread = torch.from_numpy(high - low).float() / NORMAL_RANGE
        self.center.copy_(torch.from_numpy(middle))
        self.scale.copy_(torch.where(spread > 1e-6, spread, 1.0))

    @property
    def layer_weights(self) -> list[float]:
        """The share of each layer in the weighted sum; empty for other mixes."""
        return [] if self.logits is None else self.logits.detach().softmax(0).tolist()

    def mixed(self, batch: TokenBatch) -> list[TokenBatch]:
        """What each pooler takes, on the device of the statistics."""
        batch = batch.to(self.center.device)
        rate = 1 / self.scale
        states = torch.addcmul(-self.center * rate, batch.tokens, rate).clamp(-WIDEST, WIDEST)
        if self.logits is None:
            return [batch.with_tokens(part) for part in states.chunk(len(self.poolers), 1)]
        first, *others = zip(states.chunk(self.layers, 1), self.logits.softmax(0), strict=True)
        total = first[0] * first[1]
        for part, share in others:  # faster than one product with a view of (N, m, d)
            total = torch.addcmul(total, part, share)
        return [batch.with_tokens(total)]

    def forward(self, *sides: TokenBatch) -> Tensor:
        """(B, D)."""
        mixed = [self.mixed(side) for side in sides]
        return torch.cat([pooler(*(side[place] for side in mixed)) for place, pooler in enumerate(self.poolers)], 1)

    def readout(self, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """Vectors (B, D), and the weight of each token (N,), with several poolers the mean of theirs."""
        found = [cast(Pooler, pooler).readout(part) for pooler, part in zip(self.poolers, self.mixed(batch), strict=True)]
        weights = [weight for _, weight in found if weight is not None]
        return torch.cat([vectors for vectors, _ in found], 1), torch.stack(weights).mean(0) if weights else None
