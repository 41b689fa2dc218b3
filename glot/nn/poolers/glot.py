"""GLOT: a graph over the tokens of a sentence, K convolutions, jumping knowledge and a scored readout.

Source: "Towards Improved Sentence Representations using Token Graphs", ICLR 2026, section 3, as the public release computes it.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glot.errors import lookup, need
from glot.nn.graph import GraphRule, TokenGraph
from glot.nn.places import join
from glot.nn.pooler import Pooler
from glot.nn.poolers.convs import CONVS
from glot.nn.poolers.scored import Scorer, readout
from glot.types import TokenBatch


class Jump(NamedTuple):
    """How the layers' outputs `h_1 .. h_K`, each (N, h), and the raw tokens x (N, d) become one state per token (N, D)."""

    out_dim: Callable[[int, int, int], int]
    """(d, h, K) -> D."""
    build: Callable[[int, int], nn.Module | None]
    """(h, K) -> the module that joins; None where joining has no parameters."""
    join: Callable[[Any, Tensor, list[Tensor]], list[Tensor]]
    """(module, x, [h_1 .. h_K]) -> the states (N, D), as a list of column ranges."""


def _build_lstm(width: int, num_layers: int) -> nn.Module:
    need("torch_geometric", "pyg", "--jk_mode=lstm")
    from torch_geometric.nn import JumpingKnowledge

    return JumpingKnowledge("lstm", channels=width, num_layers=num_layers)


JUMPS: dict[str, Jump] = {
    "cat": Jump(lambda d, h, k: d + k * h, lambda h, k: None, lambda jk, x, layers: [x, join(layers, 1)] if layers else [x]),
    "none": Jump(lambda d, h, k: h, lambda h, k: None, lambda jk, x, layers: [layers[-1]]),
    "max": Jump(lambda d, h, k: h, lambda h, k: None, lambda jk, x, layers: [torch.stack(layers).amax(0)]),
    "mean": Jump(lambda d, h, k: h, lambda h, k: None, lambda jk, x, layers: [torch.stack(layers).mean(0)]),
    "lstm": Jump(lambda d, h, k: h, _build_lstm, lambda jk, x, layers: [jk(layers)]),
}
"""`--jk_mode` -> how layers are joined; none = the last one alone. Only `cat` keeps x."""

SMALLEST_SCORER = 128


class GlotPooler(Pooler):
    """x (N, d) -> z (B, D), D = d + K h for `cat`, else h.

    Args:
        in_dim: d.
        hidden_dim: h.
        num_layers: K. With 0, which only `cat` allows, this is a scored pooler over the raw tokens.
        gnn_type: a name of `CONVS`.
        jk_mode: a name of `JUMPS`.
        rule: how the graph is made.
        input_proj: project the tokens to width h first, which the layers and `cat` then take in place of x. The graph is that of x.

    Raises:
        ConfigError: unknown conv or jump.
        ValueError: K = 0 with a jump other than `cat`.

    Examples:
        >>> GlotPooler(384, 128, 2, "gat", "cat", GraphRule(tau=0.6))(batch)
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, num_layers: int, gnn_type: str, jk_mode: str, rule: GraphRule, input_proj: bool = False
    ) -> None:
        if num_layers == 0 and jk_mode != "cat":
            raise ValueError(f"without layers only 'cat' is defined, got jk_mode={jk_mode!r}")
        conv, jump = lookup(CONVS, gnn_type, "gnn_type"), lookup(JUMPS, jk_mode, "jk_mode")
        taken = hidden_dim if input_proj else in_dim
        widths = [taken] + [hidden_dim] * num_layers
        super().__init__(in_dim, jump.out_dim(taken, hidden_dim, num_layers))
        self.input_proj = nn.Linear(in_dim, hidden_dim) if input_proj else None
        self.rule, self.jk_mode = rule, jk_mode
        self.apply_conv = conv.apply
        self.convs = nn.ModuleList(conv.build(before, after) for before, after in itertools.pairwise(widths))
        self.jk = jump.build(hidden_dim, num_layers)
        self.score_layer = Scorer(self.out_dim, max(SMALLEST_SCORER, self.out_dim // 2))

    def states(self, batch: TokenBatch) -> list[Tensor]:
        """One state per token after convolutions and jump: (N, D), as a list of column ranges.

        The raw tokens are not concatenated with the rest: that would copy them, and autograd would compute an unused gradient for them.
        """
        taken, *layers = self.pass_layers(TokenGraph(batch, self.rule))
        return JUMPS[self.jk_mode].join(self.jk, taken, layers)

    def pass_layers(self, graph: TokenGraph) -> list[Tensor]:
        """What the first layer takes, (N, d) or (N, h), and the output (N, h) of each layer."""
        tokens = graph.batch.tokens
        layers = [tokens if self.input_proj is None else self.input_proj(tokens)]
        for conv in self.convs:
            layers.append(self.apply_conv(conv, layers[-1], graph).relu())
        return layers

    def readout(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Vectors (B, D) and the weight of each token (N,)."""
        states = self.states(batch)
        return readout(states, self.score_layer.score(states), batch)

    def forward(self, batch: TokenBatch) -> Tensor:
        """(B, D)."""
        return self.readout(batch)[0]
