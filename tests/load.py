"""Loads: a large store, many runs, many rows. Each in a process of its own, with its peak memory. `make load` runs them at full size.

python tests/load.py [--share 1.0]
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import numpy as np
import torch
from conftest import WORDS
from soak import make_inputs

from glot.cli import glot_main, main
from glot.states.store import StoreKey, StorePlan, open_store, write_stores
from glot.states.store.writer import WriteOptions
from glot.types import TokenBatch

TOKENS, RUNS, ROWS = 5_000_000, 1_000, 200_000
WIDTH = 384
MOST_MEMORY = 1500.0
"""MiB."""


def status(field: str) -> float:
    """MiB of this process, by the system's account of it (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def open_files() -> list[str]:
    """What this process holds open."""
    names = []
    for link in Path("/proc/self/fd").iterdir():
        if link.is_symlink():
            names.append(str(link.readlink()))
    return names


def quiet(command: Callable[[list[str]], int], words: list[str]) -> None:
    """A command that must succeed, without what it prints."""
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        code = command(words)
        sys.stdout.flush()
    os.dup2(kept, 1)
    os.close(kept)
    assert code == 0, words


def large_store(folder: Path, share: float) -> dict[str, object]:
    """Random states, written and read through one epoch in random order; every batch is compared with what was written."""
    lengths = np.random.default_rng(0).integers(4, 61, size=int(TOKENS * share) // 32)
    key = StoreKey("random", "-1", 512, "float32", "float16", "0" * 64)
    source = torch.randn(1 << 16, WIDTH, generator=torch.Generator().manual_seed(0)).half()
    starts = np.random.default_rng(1).integers(0, len(source) - 61, size=len(lengths))

    def encode(rows: np.ndarray):
        for part in np.array_split(rows, max(1, len(rows) // 256)):
            states = [source[starts[row] : starts[row] + lengths[row]] for row in part]
            yield [TokenBatch.from_lengths(torch.cat(states), torch.from_numpy(lengths[part]))]

    begun = time.perf_counter()
    write_stores(folder, [key], StorePlan(lengths, WIDTH, "float16"), encode, {}, WriteOptions())
    written, store = time.perf_counter(), open_store(folder, key)
    assert store is not None
    for part in np.array_split(np.random.default_rng(2).permutation(len(lengths)), len(lengths) // 32):
        batch = store.gather(part)
        expected = torch.cat([source[starts[row] : starts[row] + lengths[row]] for row in part]).float()
        assert torch.equal(batch.tokens, expected)
    store.check()
    read = time.perf_counter()
    return {"tokens": int(lengths.sum()), "write_s": round(written - begun, 1), "read_s": round(read - written, 1)}


def many_runs(folder: Path, share: float) -> dict[str, object]:
    """A sweep of many short runs in one process: files, threads and memory after a tenth of them and at the end."""
    count = max(4, int(RUNS * share))
    stress = {"task": "stress", "num_train_samples": 64, "num_eval_samples": 32, "epochs": 1, "max_length": 32}
    plan = {"kind": "study", "name": "many", "runs_with": stress, "baseline": "mean", "arms": {"mean": {"pooling_method": "mean"}}}
    seen = []
    for seeds in (max(2, count // 10), count):
        path = folder / "many.yaml"
        path.write_text(json.dumps({**plan, "runs_with": {**stress, "data_seed": 0}, "seeds": list(range(seeds))}))
        quiet(glot_main, ["sweep", str(path), f"--output_dir={folder / 'runs'}"])
        seen.append((len(open_files()), len(os.listdir("/proc/self/task")), status("VmRSS")))
    assert len(list((folder / "runs").rglob("result.json"))) >= count
    (files, threads, memory), (files_after, threads_after, memory_after) = seen
    assert files_after <= files and threads_after <= threads, seen
    grown = (memory_after - memory) / max(1, count - count // 10)
    return {"runs": count, "files": files_after, "threads": threads_after, "MiB_per_run": round(grown, 3)}


def many_rows(folder: Path, share: float) -> dict[str, object]:
    """Rows of a user's file through a training run."""
    count = int(ROWS * share)
    make_inputs(folder)
    with (folder / "rows.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["text", "label"])
        table.writerows([" ".join(WORDS[5 + int(digit)] for digit in str(row)), row % 2] for row in range(count))  # all texts differ
    begun = time.perf_counter()
    flags = (
        f"--task=custom --model_name_or_path={folder}/bert --train_file={folder}/rows.csv --text_columns=text --max_length=16 --verbose=0"
    )
    flags += f" --epochs=1 --batch_size=1024 --pooling_method=adapool --output_dir={folder}/runs --store_dir={folder}/hidden"
    quiet(main, flags.split())
    return {"rows": count, "seconds": round(time.perf_counter() - begun, 1)}


LOADS = {"store": large_store, "runs": many_runs, "rows": many_rows}


def measure(name: str, share: float) -> dict[str, object]:
    """One load in a process of its own."""
    words = [sys.executable, __file__, "--share", str(share), "--only", name]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    assert found["peak_MiB"] < MOST_MEMORY, found
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Loads.")
    parser.add_argument("--share", type=float, default=1.0, help="of the full size")
    parser.add_argument("--only", choices=LOADS)
    asked = parser.parse_args()
    if asked.only is None:
        for load in LOADS:
            print(load, measure(load, asked.share), flush=True)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["GLOT_STORE_DIR"] = f"{scratch}/hidden"
            outcome = LOADS[asked.only](Path(scratch), asked.share)
        print(json.dumps({**outcome, "peak_MiB": round(status("VmHWM"))}))
