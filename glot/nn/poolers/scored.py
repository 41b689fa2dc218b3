"""Poolers that look at each token by itself: AdaPool, and the MLP that stands in for GLOT without a graph."""

import torch
from torch import Tensor, nn

from glot.nn.places import cut
from glot.nn.pooler import Pooler
from glot.nn.segment import segment_mean, segment_softmax, segment_sums
from glot.types import TokenBatch


def make_scorer(in_dim: int, hidden: int) -> nn.Sequential:
    """`w2 tanh(W1 u + b1) + b2`: one score a token. Its names in a checkpoint are `score_layer.0.*` and `score_layer.2.*`."""
    return nn.Sequential(nn.Linear(in_dim, hidden), nn.Tanh(), nn.Linear(hidden, 1))


def score(scorer: nn.Sequential, states: list[Tensor]) -> Tensor:
    """Scores (N,) of token states whose columns come in parts `(N, D_i)`."""
    first, squash, last = scorer
    weights = cut(first.weight, [part.shape[1] for part in states], 1)
    hidden = torch.addmm(first.bias.unsqueeze(1), weights[0], states[0].T)
    for part, weight in zip(states[1:], weights[1:], strict=True):
        hidden = torch.addmm(hidden, weight, part.T)
    return torch.addmm(last.bias.unsqueeze(1), last.weight, squash(hidden)).squeeze(0)


def readout(states: list[Tensor], scores: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Softmax of `scores (N,)` inside each sentence, then the weighted sum of the states: vectors (B, D) and weights (N,)."""
    weights = segment_softmax(scores, batch)
    return segment_sums(states, batch, weights), weights


class AdaPooler(Pooler):
    """Score every token, softmax over the sentence, sum the raw tokens out_dim = d.

    Source: the release's baseline `adapool`.
    """

    def __init__(self, in_dim: int, scorer_hidden: int) -> None:
        super().__init__(in_dim, in_dim)
        self.score_layer = make_scorer(in_dim, scorer_hidden)

    def readout(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Vectors (B, d) and the weight of each token (N,)."""
        states = [batch.tokens]
        return readout(states, score(self.score_layer, states), batch)

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, d)."""
        return self.readout(batch)[0]


class MlpPooler(Pooler):
    """PyG's MLP on every token, then the mean (the release offers it and raises). out_dim = h."""

    def __init__(self, in_dim: int, hidden_dim: int, num_layers: int) -> None:
        from torch_geometric.nn import MLP

        super().__init__(in_dim, hidden_dim)
        self.mlp = MLP([in_dim] + [hidden_dim] * num_layers, norm_kwargs={"allow_single_element": True})

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, h)."""
        return segment_mean(self.mlp(batch.tokens), batch)
