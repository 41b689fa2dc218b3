"""Edges against blocks by length and density of the graph: `python -m benchmarks.density [LENGTH ...]`.

Forward and backward of two GAT layers (h = 128), the graph included, with the edges taken always and never: where they are level is
`glot.nn.graph.SPARSE_DENSITY`. PyG's own layer beside them, where it has room and time.
"""

import sys
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.step import PygConv
from benchmarks.timing import Timings
from glot.nn.graph import GraphRule, TokenGraph
from glot.nn.poolers.gat import GatConv
from glot.types import TokenBatch

WIDTH, HIDDEN, TOKENS = 384, 128, 4096
DENSITIES = (0.005, 0.02, 0.05, 0.1, 0.2)
LENGTHS = (128, 256, 512, 2048, 8192)
PYG_EDGES = 1 << 19
"""More would take PyG a second and a gigabyte."""


def tau_of(tokens: Tensor, density: float) -> float:
    """The cosine above which this share of the pairs lies, by a sample of the tokens."""
    unit = nn.functional.normalize(tokens[torch.randperm(len(tokens))[:512]], dim=1)
    cosines = (unit @ unit.T).masked_select(~torch.eye(len(unit), dtype=torch.bool))
    return float(cosines.sort().values[int((1 - density) * (len(cosines) - 1))])


def measure(length: int, density: float, rounds: int = 5) -> tuple[float, Timings]:
    """The density that was met, and the seconds of `edges`, `blocks` and, if they are not too many, `pyg`."""
    torch.manual_seed(0)
    counts = torch.full((max(1, TOKENS // length),), length)
    batch = TokenBatch.from_lengths(torch.randn(int(counts.sum()), WIDTH), counts)
    rule = GraphRule(tau=tau_of(batch.tokens, density))
    layers = nn.ModuleList([GatConv(WIDTH, HIDDEN), GatConv(HIDDEN, HIDDEN)])
    found = TokenGraph(batch, rule).edges.shape[1]

    def work(limit: float, kind: type[GatConv] = GatConv) -> None:
        """One step on a fresh graph, with edges up to a density."""
        with patch.multiple("glot.nn.graph", SPARSE_DENSITY=limit, SPARSE_NEIGHBOURS=torch.inf):
            graph, x = TokenGraph(batch, rule), batch.tokens
            for layer in layers:
                layer.__class__ = kind
                x = layer(x, graph).relu()
            x.sum().backward()

    sides = {"edges": lambda: work(1.0), "blocks": lambda: work(0.0)}
    if found < PYG_EDGES:
        sides["pyg"] = lambda: work(1.0, PygConv)
    return found / int(counts.square().sum()), Timings(sides, rounds)


def main() -> None:
    """One line a length and density."""
    for length in [int(word) for word in sys.argv[1:]] or LENGTHS:
        for density in DENSITIES:
            met, found = measure(length, density)
            line = f"{length:5} tokens, {100 * met:4.1f} % of pairs: blocks {1000 * found.seconds('blocks'):7.1f} ms, "
            line += f"edges {found.ratio('edges', 'blocks'):.2f} of it"
            print(line + (f", PyG {found.ratio('pyg', 'blocks'):.2f}" if "pyg" in found.names else ""), flush=True)


if __name__ == "__main__":
    main()
