"""crossglot: GLOT's layers over the tokens of both sentences of a pair. It gives features of the pair, not a vector per sentence."""

from typing import cast

import torch
from torch import Tensor, nn

from glot.nn.cross import CrossGraph, CrossRule, Receivers
from glot.nn.edges import Edges, has_sparse_products
from glot.nn.graph import DENSE_TOKENS, barrier_of
from glot.nn.heads import FULL, SYMMETRIC, join_pair, joined_width
from glot.nn.places import cut
from glot.nn.pooler import Pooler
from glot.nn.poolers.gat import GatConv
from glot.nn.poolers.glot import SMALLEST_SCORER
from glot.nn.poolers.mixing import MixByRows, MixOnEdges, mix_block
from glot.nn.poolers.scored import Scorer, readout
from glot.types import TokenBatch

PARTS = 3
"""States of a token per layer: what it receives, that minus its own state, and that times its own state."""


class CrossConv(GatConv):
    """GLOT's attention layer where receivers and senders stand in different sentences; same parameters.

    A token without senders receives 0 (PyG's GATConv without self-loops).

    Examples:
        >>> CrossConv(384, 128).exchange(torch.cat([first.tokens, second.tokens]), CrossGraph(first, second, CrossRule()))
    """

    def exchange(self, x: Tensor, graph: CrossGraph) -> tuple[Tensor, Tensor]:
        """States x (N1 + N2, in), tokens of both sides -> own states `W x` and what is received, (N1 + N2, h) each."""
        own = self.lin(x)
        edges = self._cross_edges(own, graph)
        received = self._by_group(own, graph) if edges is None else MixOnEdges.apply(own, *self._halves(own), edges)[0]
        return own, received + self.bias

    def _cross_edges(self, hidden: Tensor, graph: CrossGraph) -> Edges | None:
        """The edges to mix on; None to mix by group."""
        if self.engine == "dense" or not has_sparse_products(hidden):
            return None
        return graph.edges if self.engine == "edges" else graph.few

    def _by_group(self, hidden: Tensor, graph: CrossGraph) -> Tensor:
        sides = cut(hidden, [len(side.tokens) for side in graph.pair])
        padded = [padding.pad(side) for padding, side in zip(graph.sides, sides, strict=True)]
        mixed: tuple[list[Tensor], list[Tensor]] = ([], [])
        for place, parts in enumerate(graph.receivers):
            for part in parts:
                mixed[part.side].append(self._mix(part, padded[0][place], padded[1][place]))
        return torch.cat([padding.unpad(groups) for padding, groups in zip(graph.sides, mixed, strict=True)])

    def _mix(self, part: Receivers, first: Tensor, second: Tensor) -> Tensor:
        """States (b, n, h), (b, m, h) of both sides -> what one side receives."""
        states = (first, second)
        senders = torch.cat([states[side] for side in part.senders], 1)
        sent, received = self._halves(senders)[0], self._halves(states[part.side])[1]
        some = part.allowed.any(2, keepdim=True)
        if self.engine == "dense" or max(part.allowed.shape[1:]) <= DENSE_TOKENS:
            mixed = mix_block(senders, sent, received, barrier_of(part.allowed | ~some))  # a softmax over nothing is not a number
        else:
            filled = part.allowed | ~some
            mixed = MixByRows.apply(senders, sent, received, lambda start, stop: filled[:, start:stop])
        return mixed * some


class CrossGlotPooler(Pooler):
    """Two sentences (N1, d), (N2, d) -> features of the pair (B, F): full features of two readouts.

    Per layer k, a token has its own state o = W_k s_(k-1), what it receives from the other sentence r, and s_k = relu(o + r), with s_0 = x.
    Its states are x and, for each layer, [r; r - o; r o]. They are read out per sentence as in GLOT, with one scorer for both sentences.

    Source: ours. Layers and readout are GLOT's (section 3); comparing a token with what it receives is Parikh et al. 2016, section 3.2,
    and Chen et al. 2017 (ESIM), section 3.2; features of the pair as in `join_pair`.

    Args:
        in_dim: d.
        hidden_dim: h.
        num_layers: K, at least 1.
        rule: how the graph is made.
        symmetric: exchanging the two sentences changes nothing.

    Examples:
        >>> CrossGlotPooler(384, 128, 1, CrossRule("threshold", tau=0.6))(first, second)
    """

    sides = 2

    def __init__(self, in_dim: int, hidden_dim: int, num_layers: int, rule: CrossRule, symmetric: bool = False) -> None:
        width = in_dim + PARTS * hidden_dim * num_layers
        self.features = SYMMETRIC if symmetric else FULL
        super().__init__(in_dim, joined_width(width, 2, self.features))
        self.rule = rule
        self.convs = nn.ModuleList(CrossConv(in_dim if layer == 0 else hidden_dim, hidden_dim) for layer in range(num_layers))
        self.score_layer = Scorer(width, max(SMALLEST_SCORER, width // 2))

    def forward(self, first: TokenBatch, second: TokenBatch) -> Tensor:
        """(B, F)."""
        graph = CrossGraph(first, second, self.rule)
        sides = zip(graph.pair, self.states(graph), strict=True)
        vectors = [readout(states, self.score_layer.score(states), side)[0] for side, states in sides]
        if graph.is_rotated:  # the second sentence of pair i is that of row i + 1
            vectors[1] = vectors[1].roll(1, 0)
        return join_pair(vectors[0], vectors[1], self.features)

    def readout_weights(self, first: TokenBatch, second: TokenBatch) -> list[Tensor]:
        """The weight of each token in its sentence's readout: (N1,) and (N2,)."""
        graph = CrossGraph(first, second, self.rule)
        sides = zip(graph.pair, self.states(graph), strict=True)
        return [readout(states, self.score_layer.score(states), side)[1] for side, states in sides]

    def edges_between(self, first: TokenBatch, second: TokenBatch) -> Tensor:
        """Which tokens of one pair's sentences are joined: (n, m) bool."""
        return CrossGraph(first, second, self.rule).joined[0][0]

    def states(self, graph: CrossGraph) -> tuple[list[Tensor], list[Tensor]]:
        """The states of both sides' tokens, (N1, D) and (N2, D), as lists of column ranges."""
        raw = [side.tokens for side in graph.pair]
        sizes = [len(tokens) for tokens in raw]
        state = torch.cat(raw)
        found: tuple[list[Tensor], list[Tensor]] = ([raw[0]], [raw[1]])
        for conv in self.convs:
            own, received = cast(CrossConv, conv).exchange(state, graph)
            parts = torch.cat([received, received - own, received * own], 1)
            for side, part in zip(found, cut(parts, sizes), strict=True):
                side.append(part)
            state = (own + received).relu()
        return found
