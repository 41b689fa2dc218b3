"""What came after GLOT beside it, and commands beside what they replace: `python -m benchmarks.beside DATA_DIR`.

Steps: crossglot on pairs beside glot on the same sentences; glot on a learnt sum of seven layers beside glot on one.
Commands, each in a folder of its own: a probe beside a trained head; MTEB with 3 and 6 poolers beside 1. A whole process that trains on
a complete store, beside one that only imports its libraries. And `predict` of a loaded run beside the backbone's bare pass over the same
texts.
"""

import contextlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import glot
from benchmarks.precompute import bare_pass
from benchmarks.stacking import run
from benchmarks.timing import Timings
from glot.data import load_hub_examples
from glot.data.loader import TextIndex
from glot.nn.cross import CrossRule
from glot.nn.graph import GraphRule
from glot.nn.layers import LayeredPooler
from glot.nn.poolers.crossglot import CrossGlotPooler
from glot.nn.poolers.glot import GlotPooler
from glot.states.backbone import Backbone, find_backbone
from glot.types import TokenBatch

WIDTH, HIDDEN, LAYERS = 384, 128, 7
POOLERS = ("mean", "cls", "max", "std", "weightedmean", "gated")
"""Poolers that MTEB scores from one pass; the first n of them."""
IMPORTS = "import torch, scipy.stats, sklearn.metrics, sklearn.model_selection, transformers; transformers.AutoConfig"
"""The libraries that a run with a pooler without weights cannot do without."""


def steps(rounds: int = 9) -> Timings:
    """`glot`, `crossglot` and `all layers` on 32 pairs of sentences of 6 to 40 tokens."""
    torch.manual_seed(0)
    counts = torch.randint(6, 41, (64,))
    states = torch.randn(int(counts.sum()), LAYERS * WIDTH) + 0.8
    batch, wide = TokenBatch.from_lengths(states[:, :WIDTH].contiguous(), counts), TokenBatch.from_lengths(states, counts)
    cut = int(counts[:32].sum())
    halves = batch.tokens.split([cut, len(states) - cut])
    pair = [TokenBatch.from_lengths(half, lengths) for half, lengths in zip(halves, counts.split(32), strict=True)]
    one = GlotPooler(WIDTH, HIDDEN, 2, "gat", "cat", GraphRule(tau=0.6))
    mixed = LayeredPooler(lambda width: GlotPooler(width, HIDDEN, 2, "gat", "cat", GraphRule(tau=0.6)), LAYERS * WIDTH, LAYERS, "scalar")
    cross = CrossGlotPooler(WIDTH, HIDDEN, 1, CrossRule(tau=0.6))
    return Timings(
        {
            "glot": lambda: one(batch).sum().backward(),
            "crossglot": lambda: cross(*pair).sum().backward(),
            "all layers": lambda: mixed(wide).sum().backward(),
        },
        rounds,
    )


def _seconds(command: Callable[[str], object]) -> float:
    """Of a command that works in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        command(folder)
        return time.perf_counter() - start


def probes(data_dir: Path, rows: int, rounds: int = 3) -> Timings:
    """Commands on cola with stored states: `probe`, and `trained` for 15 epochs."""
    with tempfile.TemporaryDirectory() as store:
        common = ["--task=cola", f"--data_dir={data_dir}", f"--store_dir={store}", "--verbose=0", f"--num_train_samples={rows}"]
        common += ["--report_to=none", "--pooling_method=mean"]
        return Timings(
            {
                "probe": lambda: _seconds(lambda to: run([*common, f"--output_dir={to}", "--head=probe"])),
                "trained": lambda: _seconds(lambda to: run([*common, f"--output_dir={to}", "--epochs=15"])),
            },
            rounds,
        )


def mteb(data_dir: Path, task: str, rounds: int = 3) -> Timings:
    """Commands that score 1, 3 and 6 poolers on a task."""
    common = ["--task=mteb", f"--mteb_task={task}", f"--data_dir={data_dir}", "--verbose=0", "--report_to=none"]

    def score(count: int) -> None:
        names = POOLERS[:count]
        _seconds(lambda to: run([*common, f"--mteb_poolers={','.join(names)}", f"--output_dir={to}"]))

    return Timings({str(count): lambda count=count: score(count) for count in (1, 3, 6)}, rounds)


def starts(data_dir: Path, rounds: int = 5) -> Timings:
    """Processes: a `run` of one epoch on a complete store of 2,000 sentences of cola, and its `imports` alone."""

    def process(*words: str) -> None:
        subprocess.run([sys.executable, *words], check=True, capture_output=True)

    with tempfile.TemporaryDirectory() as store:
        words = ["-m", "glot", "run", "--task=cola", "--num_train_samples=2000", f"--data_dir={data_dir}", f"--store_dir={store}"]
        words += ["--pooling_method=mean", "--epochs=1", "--verbose=0", "--report_to=none"]
        sides = {
            "run": lambda: _seconds(lambda to: process(*words, f"--output_dir={to}")),
            "imports": lambda: process("-c", IMPORTS),
        }
        return Timings(sides, rounds)


def predictions(data_dir: Path, count: int, rounds: int = 5) -> Timings:
    """`predict` of a loaded GLOT run over texts, beside the `bare` pass of its backbone over them, tokenised and sorted beforehand."""
    texts = TextIndex([load_hub_examples("cola", "train", data_dir, count)]).texts
    with tempfile.TemporaryDirectory() as folder:
        words = ["--task=cola", f"--data_dir={data_dir}", f"--store_dir={folder}", f"--output_dir={folder}", "--verbose=0"]
        _, result = run([*words, "--num_train_samples=64", "--pooling_method=glot", "--tau=0.6", "--report_to=none", "--epochs=1"])
        trained = glot.load(result["run_dir"])
        source = find_backbone("minilm")
        backbone = Backbone(source, 128, "float32", str(source.num_layers), torch.device("cpu"))
        return Timings({"predict": lambda: trained.predict(texts), "bare": bare_pass(backbone, texts)}, rounds)


def main() -> None:
    """All of them."""
    data_dir = Path(sys.argv[1])
    for found, base in (
        (steps(), "glot"),
        (probes(data_dir, 2000), "trained"),
        (mteb(data_dir, "STS16"), "1"),
        (starts(data_dir), "imports"),
        (predictions(data_dir, 500), "bare"),
    ):
        for name in found.names:
            print(f"{name}: {found.seconds(name):.3f} s, {found.ratio(name, base):.2f} of {base}")


if __name__ == "__main__":
    main()
