"""Many seeds at once: `python -m benchmarks.stacking DATA_DIR [SEEDS [TASK]]`.

Wall time and spread of `--seeds` with and without `--stack_seeds=1`; then whether stacked heads are their single runs: three of them
against `--seed=n --order_seed=0`, the losses of the first 50 steps and the predictions after one epoch.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from glot.cli import main as run_main

FIRST_STEPS = 50
POOLERS = {"mean": [], "adapool": [], "glot": ["--gat_hidden_dim=128", "--num_layers=2", "--tau=0.6"]}


def run(words: list[str]) -> tuple[float, dict[str, Any]]:
    """Seconds and result of one command."""
    start, out = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run_main(words) == 0
    return time.perf_counter() - start, json.loads(out.getvalue())


def measure(data_dir: Path, seeds: int = 16, task: str = "cola", rows: str = "full") -> dict[str, dict[str, Any]]:
    """Pooler -> seconds and the summary of the first metric, `alone` and `stacked`."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        common = [f"--task={task}", f"--data_dir={data_dir}", f"--output_dir={folder}/runs", f"--store_dir={folder}/hidden", "--verbose=0"]
        common += [f"--num_train_samples={rows}", "--report_to=none"]
        run([*common, "--pooling_method=mean", "--epochs=1"])  # the store is written
        for pooler, flags in POOLERS.items():
            words = [*common, f"--pooling_method={pooler}", *flags, f"--seeds=0..{seeds - 1}"]
            alone, single = run(words)
            together, stacked = run([*words, "--stack_seeds=1"])
            found[pooler] = {
                "alone": {"seconds": alone, "summary": single["summary"]},
                "stacked": {"seconds": together, "summary": stacked["summary"]},
                "ratio": together / alone,
            }
    return found


def agreement(data_dir: Path, task: str = "cola") -> dict[str, tuple[float, float]]:
    """Pooler -> largest difference of a loss in the first steps, and the smallest share of equal predictions, of seeds 0, 1 and 2."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        common = [f"--task={task}", f"--data_dir={data_dir}", f"--output_dir={folder}/runs", f"--store_dir={folder}/hidden", "--verbose=0"]
        common += ["--epochs=1", "--log_every=1", "--report_to=none"]
        for pooler, flags in POOLERS.items():
            words = [*common, f"--pooling_method={pooler}", *flags]
            _, stacked = run([*words, "--seeds=0..2", "--stack_seeds=1"])
            pairs = [(result, run([*words, f"--seed={seed}", "--order_seed=0"])[1]) for seed, result in enumerate(stacked["runs"])]
            losses = [[_losses(Path(one["run_dir"])) for one in pair] for pair in pairs]
            outputs = [[_predictions(Path(one["run_dir"])) for one in pair] for pair in pairs]
            apart = max(float(np.abs(one - other).max()) for one, other in losses)
            found[pooler] = apart, min(float((one == other).mean()) for one, other in outputs)
    return found


def _losses(folder: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss/step"] for row in rows if "loss/step" in row][:FIRST_STEPS])


def _predictions(folder: Path) -> np.ndarray:
    return np.loadtxt(folder / "predictions.csv", delimiter=",", skiprows=1)[:, 2]


def main() -> None:
    """One line a pooler."""
    seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 16
    task = sys.argv[3] if len(sys.argv) > 3 else "cola"
    for pooler, row in measure(Path(sys.argv[1]), seeds, task).items():
        print(
            f"{task}, {pooler}, {seeds} seeds: {row['alone']['seconds']:.1f} s alone, {row['stacked']['seconds']:.1f} s stacked, ", end=""
        )
        print(f"{row['ratio']:.2f}")
        for kind in ("alone", "stacked"):
            metrics = row[kind]["summary"].items()
            print(f"    {kind}: " + ", ".join(f"{name} {value['mean']:.4f} sd {value['sd']:.4f}" for name, value in metrics))
    for pooler, (apart, equal) in agreement(Path(sys.argv[1]), task).items():
        print(f"{task}, {pooler}, stacked against single: {FIRST_STEPS} losses within {apart:.1e}, {100 * equal:.2f} % equal predictions")


if __name__ == "__main__":
    main()
