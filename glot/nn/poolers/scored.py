"""Poolers that read each token by itself: AdaPool, whose scorer GLOT shares, and an MLP followed by the mean."""

from typing import cast

import torch
from torch import Tensor, nn

from glot.errors import need
from glot.nn.places import cut
from glot.nn.pooler import Pooler
from glot.nn.segment import segment_mean, segment_softmax, segment_sums
from glot.types import TokenBatch


class Scorer(nn.Sequential):
    """`w2 tanh(W1 u + b1) + b2`: one score per token. Its names in a checkpoint are `score_layer.0.*` and `score_layer.2.*`.

    Args:
        in_dim: D, width of the states.
        hidden: width of the hidden layer.

    Examples:
        >>> Scorer(384, 256).score([states])
    """

    def __init__(self, in_dim: int, hidden: int) -> None:
        first, last = nn.Linear(in_dim, hidden), nn.Linear(hidden, 1)
        super().__init__(first, nn.Tanh(), last)

    def score(self, states: list[Tensor]) -> Tensor:
        """Scores (N,) of token states, given as a list of column ranges `(N, D_i)`."""
        first, last = cast(nn.Linear, self[0]), cast(nn.Linear, self[2])
        weights = cut(first.weight, [part.shape[1] for part in states], 1)
        hidden = torch.addmm(first.bias.unsqueeze(1), weights[0], states[0].T)
        for part, weight in zip(states[1:], weights[1:], strict=True):
            hidden = torch.addmm(hidden, weight, part.T)
        return torch.addmm(last.bias.unsqueeze(1), last.weight, hidden.tanh()).squeeze(0)


def readout(states: list[Tensor], scores: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Softmax of `scores (N,)` inside each sentence, then the weighted sum of the states: vectors (B, D) and weights (N,)."""
    weights = segment_softmax(scores, batch)
    return segment_sums(states, batch, weights), weights


class AdaPooler(Pooler):
    """Score every token, take the softmax over the sentence, sum the raw tokens with these weights. out_dim = d.

    Source: the release's baseline `adapool`.

    Examples:
        >>> AdaPooler(384, scorer_hidden=256)(batch)
    """

    def __init__(self, in_dim: int, scorer_hidden: int) -> None:
        super().__init__(in_dim, in_dim)
        self.score_layer = Scorer(in_dim, scorer_hidden)

    def readout(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Vectors (B, d) and the weight of each token (N,)."""
        states = [batch.tokens]
        return readout(states, self.score_layer.score(states), batch)

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, d)."""
        return self.readout(batch)[0]


class MlpPooler(Pooler):
    """PyG's MLP on every token, then the mean. out_dim = h. The release offers this name, but raises an error.

    Examples:
        >>> MlpPooler(384, hidden_dim=128, num_layers=2)(batch)
    """

    def __init__(self, in_dim: int, hidden_dim: int, num_layers: int) -> None:
        need("torch_geometric", "pyg", "--pooling_method=mlp")
        from torch_geometric.nn import MLP

        super().__init__(in_dim, hidden_dim)
        self.mlp = MLP([in_dim] + [hidden_dim] * num_layers, norm_kwargs={"allow_single_element": True})

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, h)."""
        return segment_mean(self.mlp(batch.tokens), batch)
