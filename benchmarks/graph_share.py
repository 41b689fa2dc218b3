"""The token graph as a share of the whole, by length (the paper's Table 10): `python -m benchmarks.graph_share DATA_DIR [MODEL]`.

One text at a time: reviews of IMDB joined up to so many tokens, read in windows of the backbone, one graph over all of it; GLOT with K = 2,
h = 128, tau = 0.6, inference. Medians of five.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from glot.data import load_hub_examples
from glot.nn.graph import GraphRule, TokenGraph
from glot.nn.poolers.glot import GlotPooler
from glot.states.backbone import Backbone, find_backbone
from glot.study.stopwatch import REPEATS, built_and_passed, wait

LENGTHS, TAU = (128, 512, 2048, 8192), 0.6
CPU = torch.device("cpu")


class Share(NamedTuple):
    """Seconds of each part at a length, and the share of pairs that the graph joins."""

    tokens: int
    backbone: float
    graph: float
    layers: float
    readout: float
    density: float

    @property
    def of_pooler(self) -> float:
        """The graph's share of what comes after the backbone."""
        return self.graph / (self.graph + self.layers + self.readout)

    @property
    def of_whole(self) -> float:
        """The graph's share of everything."""
        return self.graph / (self.backbone + self.graph + self.layers + self.readout)


def measure(data_dir: Path, model: str = "minilm", lengths: tuple[int, ...] = LENGTHS) -> list[Share]:
    """One `Share` per length."""
    text = " ".join(load_hub_examples("imdb", "train", data_dir, 100).columns[0])
    source = find_backbone(model)
    backbones = (Backbone(source, length, "float32", str(source.num_layers), CPU, windows="quarter") for length in lengths)
    return [share(backbone, text) for backbone in backbones]


@torch.inference_mode()
def share(backbone: Backbone, text: str) -> Share:
    """The `Share` of a text that is cut to the backbone's `max_length`."""
    torch.manual_seed(0)
    pooler = GlotPooler(backbone.hidden_size, 128, 2, "gat", "cat", GraphRule(tau=TAU)).eval()
    ids = backbone.tokenise([text])
    batch = backbone.encode(ids)
    read = median(_seconds(lambda: backbone.encode(ids)) for _ in range(REPEATS))
    graph, layers = built_and_passed(lambda: TokenGraph(batch, pooler.rule), pooler.pass_layers, CPU)
    whole = median(_seconds(lambda: pooler(batch)) for _ in range(REPEATS))
    units = torch.nn.functional.normalize(batch.tokens, dim=-1)
    count = len(units)
    joined = sum(int((part @ units.T > TAU).sum()) for part in units.split(1024)) - count
    return Share(count, read, graph, layers, max(0.0, whole - graph - layers), joined / (count * (count - 1)))


def _seconds(work: Callable[[], object]) -> float:
    start = wait(CPU)
    work()
    return wait(CPU) - start


def main() -> None:
    """A Markdown table."""
    print("| tokens | pairs joined | backbone | graph | layers | readout | graph of the pooler | graph of the whole |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for one in measure(Path(sys.argv[1]), *sys.argv[2:3]):
        times = " | ".join(f"{1000 * part:.1f} ms" for part in (one.backbone, one.graph, one.layers, one.readout))
        print(f"| {one.tokens:,} | {100 * one.density:.1f} % | {times} | {100 * one.of_pooler:.0f} % | {100 * one.of_whole:.1f} % |")


if __name__ == "__main__":
    main()
