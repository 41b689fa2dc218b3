"""Random command lines and files: each is taken, or refused in lines that name it. `make fuzz` runs this for ten minutes.

python tests/fuzz.py [--seconds 600] [--seed 0]
"""

import argparse
import collections
import contextlib
import io
import itertools
import json
import os
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # before the libraries are imported

import numpy as np
from soak import make_inputs

from glot.cli import glot_main, main
from glot.data.records import open_table
from glot.errors import GlotError
from glot.settings.flags import parse
from glot.settings.index import flag_facts
from glot.states.store import StorePlan
from glot.states.store.reader import open_store_folder
from glot.states.store.writer import _finished_chunks
from glot.study.files import read_study
from glot.study.resolution import resolve_cells
from glot.training.checkpoint import load_run

WORDS = [
    *("", "0", "1", "-1", "2.5", "1e400", "nan", "--", "..", "0..9", "0..", "9..0", "0,1,0", "a,b", ",", "9" * 40, "1_000", " 1", "0x10"),
    *("cola", "stress", "custom", "embedding", "mteb", "mean", "glot", "cosine", "minilm", "owner/name", "owner/name@main", "a/b/c"),
    *("~nobody/x", "~", "/", ".", "../../x", "/dev/null", "a.csv", "*.csv", "hub:", "hub:a/b", "hub:a/b:c@d", "file.py:Name", ":", "a:b"),
    *("[", "{a: 1}", '{"a": [', "null", "true", "%s", "{}", "\n", "'", "- - -", "x" * 300, "ä", "\ud800", "\udce9", "\0"),
]
TREES = [None, True, 0, -1, 1e400, "x", "", [], {}, [1], [[]], {"a": 1}]
TREES += [{"values": []}, {"values": [0, 1]}, {"values": 3}, {"min": 0}, {"value": 1}]
KEYS = ["kind", "name", "runs_with", "grid", "arms", "tune", "seeds", "baseline", "published", "program", "method", "metric", "parameters"]
KEYS += ["command", "run_cap", "task", "pooling_method", "lr", "tau", "x"]
GOOD = [
    {"kind": "study", "name": "s", "grid": {"lr": [0.1, 0.2]}, "arms": {"a": {"task": "cola", "pooling_method": "mean"}}},
    {"program": "main.py", "method": "grid", "parameters": {"task": {"value": "cola"}, "tau": {"values": [0.1, 0.5]}}},
]
COMMANDS = ["sweep", "report", "runs", "export", "predict", "store", "rerun", "doctor_", ""]
"""Those that neither load a backbone nor write into the current folder."""


def command_lines(draw: random.Random) -> list[str]:
    """Random flags with random values."""
    names = [*flag_facts(), "config", "help_al", "x"]
    words = [f"--{draw.choice(names)}={draw.choice(WORDS)}" for _ in range(draw.randint(0, 4))]
    return [*words, *(draw.choice(WORDS) for _ in range(draw.random() < 0.1))]


def tree(draw: random.Random, depth: int = 3) -> object:
    """A random value of YAML."""
    if depth == 0 or draw.random() < 0.4:
        return draw.choice([*TREES, *WORDS])
    if draw.random() < 0.3:
        return [tree(draw, depth - 1) for _ in range(draw.randint(0, 3))]
    return {draw.choice([*KEYS, *WORDS]): tree(draw, depth - 1) for _ in range(draw.randint(0, 4))}


def study(draw: random.Random) -> object:
    """A study or sweep file with some of its parts replaced."""
    made = dict(draw.choice(GOOD))
    for _ in range(draw.randint(1, 3)):
        made[draw.choice(KEYS)] = tree(draw)
    return made


def broken(draw: random.Random, text: bytes) -> bytes:
    """Bytes with some of them changed, cut or doubled."""
    data = bytearray(text)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(data) or 1)
        data[place : place + draw.randint(0, 3)] = bytes(draw.choices(range(256), k=draw.randint(0, 3)))
    return bytes(data[: draw.randint(0, len(data))] if draw.random() < 0.2 else data)


def as_yaml(value: object) -> str:
    """JSON is YAML, and takes everything that the trees hold."""
    return json.dumps(value)


def attempts(draw: random.Random, folder: Path) -> Iterator[tuple[str, object]]:
    """One try of each kind: (what it was, a function that tries it)."""
    words = command_lines(draw)
    yield f"flags {words!r}", lambda: parse(words)
    yield f"main {words!r}", lambda: main([*words, "--dry_run=1", "--task=wnli", "--data_dir=/nowhere"])
    file = folder / "f.yaml"
    value = tree(draw)
    file.write_text(as_yaml(value))
    yield f"config {value!r}", lambda: parse([f"--config={file}"])
    task = folder / "task.yaml"
    task.write_text(as_yaml(value))
    yield f"task file {value!r}", lambda: parse([f"--task={task}"])
    plan = study(draw)
    (folder / "study.yaml").write_text(as_yaml(plan))
    yield f"study {plan!r}", lambda: resolve_cells(folder / "study.yaml", read_study(folder / "study.yaml"))
    raw = broken(draw, as_yaml(plan).encode())
    (folder / "raw.yaml").write_bytes(raw)
    yield f"study bytes {raw!r}", lambda: resolve_cells(folder / "raw.yaml", read_study(folder / "raw.yaml"))
    for suffix, text in (
        (".csv", b'text,label\n"a, b",1\nc,0\n'),
        (".jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n'),
        (".json", b'[{"text": "a", "label": 1}, {"text": "b", "label": 0}]'),
    ):
        path, data = folder / f"rows{suffix}", broken(draw, text)
        path.write_bytes(data)
        yield f"rows {suffix} {data!r}", lambda path=path: list(open_table("train_file", str(path), None).records())
    line = [draw.choice(COMMANDS), *(draw.choice([*WORDS, str(folder), *words]) for _ in range(draw.randint(0, 3)))]
    line = [word for word in line if "\0" not in word and "\ud800" not in word]  # which no shell can hand over
    yield f"glot {line!r}", lambda: glot_main(line)


def prepare(folder: Path) -> None:
    """A finished run with its store, and a store whose writer was killed: what `damaged_files` damages."""
    make_inputs(folder / "inputs")
    flags = f"--task=cola --model_name_or_path={folder}/inputs/bert --data_dir={folder}/inputs/mirror --epochs=1 --max_length=16"
    flags += f" --verbose=0 --pooling_method=adapool --output_dir={folder}/runs --store_dir={folder}/hidden --run_name=run"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(flags.split()) == 0
    (store,) = (folder / "hidden").iterdir()
    shutil.copytree(store, folder / "half" / store.name)
    (folder / "half" / store.name / "manifest.json").unlink()
    shutil.copytree(folder / "runs/run", folder / "unsealed/run")
    (folder / "unsealed/run/result.json").unlink()  # which holds the checksums of the others


def damaged_files(draw: random.Random, folder: Path) -> Iterator[tuple[str, object]]:
    """Each file of a run and of a store, damaged one at a time, and read by what reads it."""
    (store,) = (folder / "hidden").iterdir()
    half = folder / "half" / store.name
    whole = open_store_folder(store)
    plan = StorePlan(whole._lengths, whole.hidden_size, "float16")
    readers: dict[Path, Callable[[], object]] = {
        folder / "runs/run": lambda: (glot_main(["runs", str(folder / "runs")]), load_run(folder / "runs/run")),
        folder / "unsealed/run": lambda: load_run(folder / "unsealed/run"),
        store: lambda: read_all(store),
        half: lambda: _finished_chunks(half, plan),
    }
    for place, read in readers.items():
        names = [path for path in sorted(place.iterdir()) if path.is_file() and path.stat().st_size and path.name != ".glot-run"]
        path = draw.choice(names)
        kept = path.read_bytes()
        path.write_bytes(broken(draw, kept))
        yield f"{place.parent.name}: {path.name} {path.read_bytes()[:200]!r}", read
        path.write_bytes(kept)


def read_all(folder: Path) -> None:
    """Everything that is done with a store."""
    glot_main(["store", "list", f"--store_dir={folder.parent}", f"--output_dir={folder.parent}"])
    store = open_store_folder(folder)
    store.gather(np.arange(len(store)))
    store.check()


def fuzz(seconds: float, seed: int) -> tuple[int, collections.Counter[str], dict[str, str]]:
    """Try until the time is up: tries, exceptions by place, and the first try that met each."""
    draw, tries, places, firsts = random.Random(seed), 0, collections.Counter[str](), dict[str, str]()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        while time.monotonic() < end:
            for what, attempt in itertools.chain(attempts(draw, Path(folder)), damaged_files(draw, Path(folder))):
                tries += 1
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    try:
                        attempt()
                    except (GlotError, SystemExit):
                        continue
                    except Exception as error:  # any exception that reaches here is what is looked for
                        frame = traceback.extract_tb(error.__traceback__)[-1]
                        place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno} ({str(error)[:60]!r})"
                        places[place] += 1
                        firsts.setdefault(place, what[:400])
    return tries, places, firsts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Random command lines and files.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    tries, places, firsts = fuzz(asked.seconds, asked.seed)
    for place, count in places.most_common():
        print(f"{count} x {place}\n    {firsts[place]}")
    print(f"{tries:,} tries, {sum(places.values())} uncaught exceptions at {len(places)} places (seed {asked.seed})")
    raise SystemExit(bool(places))
