"""One-head graph attention with the parameters of PyG's `GATConv(in, h, edge_dim=1)` and exact engines.

`edges` runs PyG's own layer on the edge list. `dense` is the same sum written as a masked softmax over the n x n pairs of a sentence and a
batched product, which on a CPU is an order of magnitude faster unless the graph is sparse and long: PyG builds an (E, h) message tensor.
A long sentence is taken some rows at a time, and those rows are made anew in the backward pass, so memory is linear in its length.

Why dense needs no edge features: every edge weighs 1, and PyG gives a self-loop the mean of its token's incoming features, which is 1 too,
or 0 for a token without neighbours, whose softmax has a single term and is 1 whatever the logit. So the edge term is one learned number.
"""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glot.graph import ROW_RULES, TokenGraph, barrier_of, rows_at_once

NEGATIVE_SLOPE = 0.2
DENSE_TOKENS = 2048
"""Longest sentence that is taken as a whole: n x n float32 is 16 MiB there."""
ENGINES = ("auto", "dense", "edges")


class GatConv(nn.Module):
    """x (N, in) -> (N, h). Source: Velickovic et al. 2018, as torch_geometric.nn.GATConv computes it with its defaults.

    Args:
        in_dim: width of the tokens.
        out_dim: h.
        engine: dense, edges, or auto: dense (by rows beyond `DENSE_TOKENS` tokens), nothing at all where there are no edges, and edges for
            long sentences with a random graph.
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
        long = int(graph.batch.lengths.max()) > DENSE_TOKENS
        on_edges = self.engine == "edges" or (self.engine == "auto" and long and graph.rule.kind not in ROW_RULES)
        return self._on_edges(x, graph) if on_edges else self._dense(x, graph)

    def _dense(self, x: Tensor, graph: TokenGraph) -> Tensor:
        edge = self.lin_edge.weight.view(-1) @ self.att_edge.view(-1)
        mixed = []
        for block, hidden in zip(graph.blocks, graph.pad(self.lin(x)), strict=True):
            sent, received = hidden @ self.att_src.view(-1), hidden @ self.att_dst.view(-1) + edge
            if self.engine == "auto" and hidden.shape[1] > DENSE_TOKENS:
                mixed.append(_MixByRows.apply(hidden, sent, received, partial(graph.rows, block)))
            else:
                mixed.append(_mix(hidden, sent, received, graph.barrier(block)))
        return graph.unpad(mixed) + self.bias

    def _on_edges(self, x: Tensor, graph: TokenGraph) -> Tensor:
        edges = graph.edges
        features = x.new_ones(edges.shape[1], 1)
        layer = _pyg_layer(self.lin.in_features, self.lin.out_features)
        return torch.func.functional_call(layer, dict(self.named_parameters()), (x, edges, features))


@cache
def _pyg_layer(in_dim: int, out_dim: int) -> nn.Module:
    """PyG's layer without weights of its own: it is called with ours, so it is neither saved, moved nor initialised."""
    from torch_geometric.nn import GATConv

    with torch.device("meta"):
        return GATConv(in_dim, out_dim, edge_dim=1, negative_slope=NEGATIVE_SLOPE)


def _mix(hidden: Tensor, sent: Tensor, received: Tensor, barrier: Tensor) -> Tensor:
    """Attention inside one block: hidden (b, n, h), logit halves (b, n), barrier (b, n, n) 0 or -inf -> (b, n, h).

    In place where autograd allows it: an n x n tensor costs more to pass over than to compute. LeakyReLU leaves -inf where it is.
    """
    logits = (received.unsqueeze(2) + sent.unsqueeze(1)).add_(barrier)
    return F.leaky_relu_(logits, NEGATIVE_SLOPE).softmax(-1) @ hidden


class _MixByRows(torch.autograd.Function):
    """`_mix` of one long sentence, (1, n, h): some rows at a time, and those anew on the way back; only the inputs are kept.

    (torch's checkpoint, once for every part, leaves so many small objects between the parts that the memory they share is never reused.)
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, sent: Tensor, received: Tensor, rows: Callable[[int, int], Tensor]) -> Tensor:
        ctx.save_for_backward(hidden, sent, received)
        ctx.rows = rows
        mixed = torch.empty_like(hidden)
        for start, stop in _parts(hidden.shape[1]):
            mixed[:, start:stop] = _mix(hidden, sent, received[:, start:stop], barrier_of(rows(start, stop).unsqueeze(0)))
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of hidden, sent and received: each part is mixed again, and its gradients are added to the sums."""
        hidden, sent, received = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
        sums = [torch.zeros_like(saved) for saved in ctx.saved_tensors]
        for start, stop in _parts(hidden.shape[1]):
            with torch.enable_grad():
                own = received[:, start:stop]
                mixed = _mix(hidden, sent, own, barrier_of(ctx.rows(start, stop).unsqueeze(0)))
            found = torch.autograd.grad(mixed, (hidden, sent, own), grad[:, start:stop])
            for total, part in zip((sums[0], sums[1], sums[2][:, start:stop]), found, strict=True):
                total += part
        return sums[0], sums[1], sums[2], None


def _parts(length: int) -> list[tuple[int, int]]:
    """[start, stop) of the rows that are taken together."""
    step = rows_at_once(length)
    return [(start, min(start + step, length)) for start in range(0, length, step)]
