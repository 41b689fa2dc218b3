"""One-head graph attention with the parameters of PyG's `GATConv(in, h, edge_dim=1)`.

A batch is mixed in blocks, or on its edges where they are few (`glot.nn.poolers.mixing`). In blocks, a sentence is a masked softmax over
its n x n pairs and a batched product. PyG's own layer builds an (E, h) message tensor and is slower than the better of the two
(benchmarks/README.md).

No form needs edge features, because the edge term is one learned number. Every edge has weight 1, and PyG gives a self-loop the mean of its
token's incoming features, which is 1 too. For a token without neighbours that mean is 0, but its softmax has a single term, which is 1.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glot.nn.edges import Edges, has_sparse_products
from glot.nn.graph import DENSE_TOKENS, TokenGraph
from glot.nn.poolers.mixing import NEGATIVE_SLOPE, MixByRows, MixOnEdges, mix_block

ENGINES = ("auto", "dense", "edges")


class GatConv(nn.Module):
    """x (N, in) -> (N, h).

    Source: Velickovic et al. 2018, as torch_geometric.nn.GATConv computes it with its defaults.

    Args:
        in_dim: width of the tokens.
        out_dim: h.
        engine: `dense` (blocks), `edges` or `auto`. `auto` skips mixing under the rule `none`, takes edges where they are few, else blocks.
            Except with `dense`, blocks take a sentence beyond `DENSE_TOKENS` tokens by row ranges.

    Examples:
        >>> GatConv(384, 128)(batch.tokens, TokenGraph(batch, GraphRule()))
    """

    def __init__(self, in_dim: int, out_dim: int, engine: str = "auto") -> None:
        super().__init__()
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {ENGINES}, got {engine!r}")
        self.engine = engine
        self.lin = nn.Linear(in_dim, out_dim, bias=False)
        self.lin_edge = nn.Linear(1, out_dim, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, 1, out_dim))
        self.att_dst = nn.Parameter(torch.empty(1, 1, out_dim))
        self.att_edge = nn.Parameter(torch.empty(1, 1, out_dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        for weight in (self.lin.weight, self.lin_edge.weight, self.att_src, self.att_dst, self.att_edge):
            bound = math.sqrt(6 / (weight.shape[-1] + weight.shape[-2]))  # Glorot, as in PyG
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Tensor, graph: TokenGraph) -> Tensor:
        """(N, in) -> (N, h)."""
        if self.engine == "auto" and graph.rule.kind == "none":  # a softmax over one token is one
            return self.lin(x) + self.bias
        hidden = self.lin(x)
        edges = self._edges(hidden, graph)
        mixed = self._in_blocks(hidden, graph) if edges is None else MixOnEdges.apply(hidden, *self._halves(hidden), edges)[0]
        return mixed + self.bias

    def attention(self, x: Tensor, barrier: Tensor) -> Tensor:
        """Weights (n, n) with which the tokens of one sentence see each other, row = receiver: x (n, in), additive mask (n, n)."""
        sent, received = self._halves(self.lin(x))
        return F.leaky_relu(received.unsqueeze(1) + sent.unsqueeze(0) + barrier, NEGATIVE_SLOPE).softmax(-1)

    def _edges(self, hidden: Tensor, graph: TokenGraph) -> Edges | None:
        """The edges to mix on; None to mix in blocks."""
        if self.engine == "dense" or not has_sparse_products(hidden):
            return None
        return graph.sparse if self.engine == "edges" else graph.few

    def _in_blocks(self, hidden: Tensor, graph: TokenGraph) -> Tensor:
        mixed = []
        for block, padded in zip(graph.blocks, graph.padding.pad(hidden), strict=True):
            if self.engine != "dense" and padded.shape[1] > DENSE_TOKENS:
                mixed.append(MixByRows.apply(padded, *self._halves(padded), block.rows))
            else:
                mixed.append(mix_block(padded, *self._halves(padded), block.barrier))
        return graph.padding.unpad(mixed)

    def _halves(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(.., h) -> a token's terms of a logit as sender and as receiver, (..) each. The second includes the edge term."""
        edge = self.lin_edge.weight.view(-1) @ self.att_edge.view(-1)
        sent, received = (hidden @ torch.cat([self.att_src[0], self.att_dst[0]]).T).unbind(-1)  # one product: one gradient of `hidden`
        return sent, received + edge
