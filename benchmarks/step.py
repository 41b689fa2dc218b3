"""One training step of the GLOT pooler against its floor and against PyG: `python -m benchmarks.step`.

Floor: the bare matrix products of the same sizes, forward and twice backward: h W and alpha (h W) of every layer, and the scorer's two.
Neither the cosines of the graph, nor softmax, tanh and sums, nor Adam are in it.
PyG: the same pooler with torch_geometric's own GATConv on the block-diagonal edge list.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch_geometric.nn import GATConv

from benchmarks.timing import Timings
from glot.nn.graph import GraphRule, TokenGraph
from glot.nn.poolers.gat import GatConv
from glot.nn.poolers.glot import SMALLEST_SCORER, GlotPooler
from glot.types import TokenBatch

WIDTH = 384
SHORT, SHORT_ROUNDS, PYG_ROUNDS = 32, 15, 3
"""Steps on sentences of at most so many tokens take milliseconds: so many times the rounds, or their median moves by a tenth."""


@cache
def pyg_layer(in_dim: int, out_dim: int) -> GATConv:
    """PyG's layer without weights of its own."""
    with torch.device("meta"):
        return GATConv(in_dim, out_dim, edge_dim=1)


class PygConv(GatConv):
    """Our layer's parameters in PyG's own layer."""

    def forward(self, x: Tensor, graph: TokenGraph) -> Tensor:
        """(N, in) -> (N, h)."""
        layer = pyg_layer(self.lin.in_features, self.lin.out_features)
        return functional_call(layer, dict(self.named_parameters()), (x, graph.edges, x.new_ones(graph.edges.shape[1], 1)))


class Case(NamedTuple):
    """Sentences, [shortest, longest) in tokens, K, h, tau."""

    sentences: int
    lengths: tuple[int, int]
    num_layers: int
    hidden: int
    tau: float


CASES = {
    "32 sentences of 6-15 tokens, K = 2, h = 256": Case(32, (6, 16), 2, 256, 0.3),
    "32 sentences of 6-15 tokens, K = 2, h = 128": Case(32, (6, 16), 2, 128, 0.3),
    "32 sentences of 128 tokens, K = 4, h = 64": Case(32, (128, 129), 4, 64, 0.3),
    "8 sentences of 200-512 tokens, K = 2, h = 256": Case(8, (200, 513), 2, 256, 0.3),
}
"""Four sizes; h = 128 is the default. Tokens are random with cosines around 0.4, so most pairs are joined."""


def make_batch(case: Case) -> TokenBatch:
    """Random tokens with a common direction."""
    torch.manual_seed(0)
    counts = torch.randint(*case.lengths, (case.sentences,))
    return TokenBatch.from_lengths(torch.randn(int(counts.sum()), WIDTH) + 0.8, counts)


def make_pooler(case: Case, conv: type[GatConv] = GatConv) -> GlotPooler:
    """A pooler whose layers are of one kind."""
    torch.manual_seed(1)
    pooler = GlotPooler(WIDTH, case.hidden, case.num_layers, "gat", "cat", GraphRule(tau=case.tau))
    for layer in pooler.convs:
        layer.__class__ = conv
    return pooler


def step(pooler: GlotPooler, batch: TokenBatch) -> None:
    """Forward and backward."""
    pooler(batch).sum().backward()
    pooler.zero_grad(set_to_none=True)


def bare_products(case: Case, batch: TokenBatch) -> Callable[[], None]:
    """The floor, as work to be timed."""
    tokens, graph = len(batch.tokens), TokenGraph(batch, GraphRule())
    joined = WIDTH + case.num_layers * case.hidden
    scorer = max(SMALLEST_SCORER, joined // 2)
    sizes = [(tokens, WIDTH if layer == 0 else case.hidden, case.hidden) for layer in range(case.num_layers)]
    sizes += [(tokens, joined, scorer), (tokens, scorer, 1)]
    flat = [(torch.randn(n, k), torch.randn(k, m), torch.randn(n, m)) for n, k, m in sizes]
    blocks = []
    for block in graph.blocks:
        b, n = block.index.shape
        blocks.append((torch.randn(b, n, n), torch.randn(b, n, case.hidden), torch.randn(b, n, case.hidden)))

    def work() -> None:
        """C = A B, then dA = dC B' and dB = A' dC, for every product."""
        for left, right, grad in flat + blocks * case.num_layers:
            torch.matmul(left, right)
            torch.matmul(grad, right.transpose(-1, -2))
            torch.matmul(left.transpose(-1, -2), grad)

    return work


def measure(rounds: int = 9, cases: int | None = None) -> dict[str, Timings]:
    """Case -> seconds of `ours`, `products` and `pyg`, the last in `PYG_ROUNDS` rounds at most: it takes up to ten seconds per step."""
    found = {}
    for name, case in list(CASES.items())[:cases]:
        batch = make_batch(case)
        ours, pyg = make_pooler(case), make_pooler(case, PygConv)
        assert torch.allclose(ours(batch), pyg(batch), atol=1e-4)
        work = {"ours": lambda p=ours, b=batch: step(p, b), "products": bare_products(case, batch)}
        found[name] = Timings(work, rounds * SHORT_ROUNDS if rounds > 1 and case.lengths[1] <= SHORT else rounds)
        both = {"ours": work["ours"], "pyg": lambda p=pyg, b=batch: step(p, b)}
        found[f"{name}, PyG"] = Timings(both, min(rounds, PYG_ROUNDS))
    return found


if __name__ == "__main__":
    for name, timings in measure().items():
        other = "pyg" if name.endswith("PyG") else "products"
        own, theirs = (1000 * timings.seconds(side) for side in ("ours", other))
        print(f"{name}: {own:.1f} ms, {other} {theirs:.1f} ms, ratio {timings.ratio('ours', other):.2f}")
