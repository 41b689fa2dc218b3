"""Half precision on this machine: a backbone's pass, and a GLOT step, beside float32: `python -m benchmarks.half`."""

import argparse

import torch

from benchmarks.timing import Timings
from glot.machine import cpu_flags
from glot.nn.poolers import build_pooler
from glot.settings.config import RunConfig
from glot.states.backbone import find_backbone, try_dtypes
from glot.types import TokenBatch

SIZES = ((32, 12), (32, 128), (8, 340))
"""Sentences, and tokens of each."""


def step_ratio(sentences: int, tokens: int, rounds: int) -> tuple[float, float, float]:
    """Milliseconds of a GLOT step (K = 2, h = 128, d = 384) in float32 and in bfloat16, and the median of their ratios."""
    config = RunConfig().with_values(pooling_method="glot", gat_hidden_dim=128, tau=0.6)
    torch.manual_seed(0)
    pooler = build_pooler(config.pooler, config.graph, 384, 0)
    batch = TokenBatch.from_lengths(torch.randn(sentences * tokens, 384) + 0.5, torch.full((sentences,), tokens))

    def step(is_half: bool) -> None:
        """Forward and backward."""
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            vectors = pooler(batch)
        vectors.float().sum().backward()

    timings = Timings({"float32": lambda: step(False), "bfloat16": lambda: step(True)}, rounds)
    return 1000 * timings.seconds("float32"), 1000 * timings.seconds("bfloat16"), timings.ratio("bfloat16", "float32")


def main() -> None:
    """A line per size and per backbone."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.half", description=__doc__)
    parser.add_argument("--backbones", default="minilm,smollm2", help="with commas; empty = none [minilm,smollm2]")
    parser.add_argument("--rounds", type=int, default=11, help="[11]")
    asked = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, {' '.join(cpu_flags()) or 'no flags known'}")
    for sentences, tokens in SIZES:
        exact, half, ratio = step_ratio(sentences, tokens, asked.rounds)
        print(f"a GLOT step, {sentences} x {tokens} tokens: {exact:.1f} ms in float32, {half:.1f} ms in bfloat16, ratio {ratio:.2f}")
    for name in filter(None, asked.backbones.split(",")):
        times = try_dtypes(find_backbone(name), torch.device("cpu"))
        print(f"{name}, a batch of 16 texts: " + ", ".join(f"{dtype} {value:.0f} ms" for dtype, value in times.items()))


if __name__ == "__main__":
    main()
