"""Milliseconds of one GLOT step, forward and backward, d = 384: `python benchmarks/glot_step.py`.

To compare two versions, run this file with PYTHONPATH at the other checkout, the two in turn on an idle machine.
"""

import time
from statistics import median

import torch

from glot.config import GraphConfig, PoolerConfig
from glot.poolers import build_pooler
from glot.types import TokenBatch

CASES = {
    "32 x 6-15 tokens, K = 2, h = 256": (32, (6, 15), 2, 256, "threshold"),
    "32 x 128 tokens, K = 4, h = 64": (32, (128, 129), 4, 64, "threshold"),
    "32 x 128 tokens, K = 2, h = 128": (32, (128, 129), 2, 128, "threshold"),
    "32 x 128 tokens, K = 2, h = 128, no edges": (32, (128, 129), 2, 128, "none"),
    "8 x 200-512 tokens, K = 2, h = 256": (8, (200, 513), 2, 256, "threshold"),
}
"""Name -> sentences, [shortest, longest) in tokens, layers, width, graph. The tokens are random with cosines around 0.4, tau 0.3."""


def measure(sentences: int, lengths: tuple[int, int], num_layers: int, width: int, graph: str) -> float:
    """Median milliseconds of nine steps after three unmeasured ones."""
    torch.manual_seed(0)
    counts = torch.randint(*lengths, (sentences,))
    batch = TokenBatch.from_lengths(torch.randn(int(counts.sum()), 384) + 0.8, counts)
    sizes = PoolerConfig("glot", num_layers=num_layers, gat_hidden_dim=width)
    pooler = build_pooler(sizes, GraphConfig(graph_adj=graph, tau=0.3), 384)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        pooler(batch).sum().backward()
        pooler.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds[3:])


if __name__ == "__main__":
    for name, case in CASES.items():
        print(f"{name}: {measure(*case):.1f} ms", flush=True)
