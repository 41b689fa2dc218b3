"""Peak memory and time of one GLOT step (forward and backward) by the length of its sentence: `python -m benchmarks.memory [LENGTH ...]`.

A nearly complete graph, which is taken by rows where it is long, and the eight nearest neighbours, which are taken as edges.
One process a length: what the step takes above the inputs, by the system's account of the process's largest size (Linux).
"""

import multiprocessing
import sys
import time
from pathlib import Path

LENGTHS = (128, 512, 2048, 8192)
GRAPHS = ("threshold", "knn")
WIDTH = 384


def _status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def _measure(lengths: list[int], hidden: int, graph: str) -> tuple[float, float, float]:
    import torch

    from glot.nn.graph import GraphRule
    from glot.nn.poolers.glot import GlotPooler
    from glot.types import TokenBatch

    torch.manual_seed(0)
    pooler = GlotPooler(WIDTH, hidden, 2, "gat", "cat", GraphRule(graph, tau=0.3))
    pooler(TokenBatch.from_lengths(torch.randn(8, WIDTH), torch.tensor([8]))).sum().backward()  # libraries make their buffers
    batch = TokenBatch.from_lengths(torch.randn(sum(lengths), WIDTH) + 0.8, torch.tensor(lengths))
    Path("/proc/self/clear_refs").write_text("5")  # the largest size so far is forgotten
    before, start = _status("VmRSS"), time.perf_counter()
    pooler(batch).sum().backward()
    return _status("VmHWM") - before, time.perf_counter() - start, batch.tokens.numel() * 4 / 2**20


def peak(lengths: list[int], hidden: int = 128, graph: str = "threshold") -> tuple[float, float, float]:
    """MiB above the inputs, seconds, and MiB of the inputs, for a batch of sentences of these lengths (K = 2)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (lengths, hidden, graph))


def main() -> None:
    """One line a length."""
    for length in [int(word) for word in sys.argv[1:]] or LENGTHS:
        for graph in GRAPHS:
            above, seconds, inputs = peak([length], graph=graph)
            print(f"{length:6} tokens, {graph}: {above:7.0f} MiB above the {inputs:.1f} MiB of input, {seconds:.2f} s", flush=True)


if __name__ == "__main__":
    main()
