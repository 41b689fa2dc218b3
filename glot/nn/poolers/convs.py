"""The GNN layers behind one interface: build(in_dim, h) -> module, apply(module, x (N, in), graph) -> (N, h).

Only this module knows each layer's own signature. gcn, gin and gine are PyG's layers on the edge list.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from glot.errors import need
from glot.nn.graph import TokenGraph
from glot.nn.poolers.gat import GatConv


class Conv(NamedTuple):
    """How to build a layer, and how to call it."""

    build: Callable[[int, int], nn.Module]
    apply: Callable[[Any, Tensor, TokenGraph], Tensor]


def _perceptron(in_dim: int, out_dim: int) -> nn.Module:
    from torch_geometric.nn import MLP

    return MLP([in_dim, out_dim, out_dim], norm_kwargs={"allow_single_element": True})


def _build_gcn(in_dim: int, out_dim: int) -> nn.Module:
    need("torch_geometric", "pyg", "--gnn_type=gcn")
    from torch_geometric.nn import GCNConv

    return GCNConv(in_dim, out_dim)


def _build_gin(in_dim: int, out_dim: int) -> nn.Module:
    need("torch_geometric", "pyg", "--gnn_type=gin")
    from torch_geometric.nn import GINConv

    return GINConv(_perceptron(in_dim, out_dim))


def _build_gine(in_dim: int, out_dim: int) -> nn.Module:
    need("torch_geometric", "pyg", "--gnn_type=gine")
    from torch_geometric.nn import GINEConv

    return GINEConv(_perceptron(in_dim, out_dim), edge_dim=1)


def _on_edges(layer: nn.Module, x: Tensor, graph: TokenGraph) -> Tensor:
    return layer(x, graph.edges)


def _on_weighted_edges(layer: nn.Module, x: Tensor, graph: TokenGraph) -> Tensor:
    return layer(x, graph.edges, x.new_ones(graph.edges.shape[1], 1))


def _on_graph(layer: nn.Module, x: Tensor, graph: TokenGraph) -> Tensor:
    return layer(x, graph)


CONVS: dict[str, Conv] = {
    "gat": Conv(GatConv, _on_graph),
    "gcn": Conv(_build_gcn, _on_edges),
    "gin": Conv(_build_gin, _on_edges),
    "gine": Conv(_build_gine, _on_weighted_edges),
}
"""`--gnn_type` -> layer."""
