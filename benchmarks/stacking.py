"""Many seeds at once: `python -m benchmarks.stacking DATA_DIR [SEEDS [TASK]]`.

Wall time and spread of `--seeds` with and without `--stack_seeds=1`.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from glot.cli import main as run_main

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


if __name__ == "__main__":
    main()
