"""Faults in a loop: kills, signals, full disks, flipped and cut files. `make soak` runs this for thirty minutes.

Every command is repeated after its faults, and must then give the bytes of an undisturbed one; where a file is damaged it may refuse in one
line that names the file, and what that line advises must give those bytes.

python tests/soak.py [--seconds 1800] [--seed 0]
python tests/soak.py --operations train export      kills a command once at each of its file operations instead
"""

import argparse
import collections
import fcntl
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from conftest import WORDS, _word_tokenizer, single_rows, write_rows
from transformers import BertConfig, BertModel

from glot import reuse, study  # noqa: F401 - imported once, before the forks
from glot.cli import glot_main
from glot.integrations import export  # noqa: F401

CHECKED = ("model.safetensors", "predictions.csv", "metrics.jsonl")
PATIENCE = 120.0


class Ended(NamedTuple):
    """How a command ended: its exit code (below 0: a signal), what it printed and said, its seconds."""

    code: int
    out: str
    said: str
    seconds: float


OPERATIONS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def kill_at(operation: int) -> None:
    """Kill this process right before it changes a file for the n-th time, as far as Python can see that."""
    left = [operation]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        """Called by the interpreter for every event."""
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in OPERATIONS:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


class Fault(NamedTuple):
    """What disturbs a command: a signal after some seconds, files of a limited size, a kill at one of its file operations."""

    send: tuple[int, float] | None = None
    file_limit: int | None = None
    operation: int | None = None


NONE = Fault()


def start(words: list[str], place: Path, fault: Fault) -> tuple[int, list[int]]:
    """Run a command in a fork of this process, which has imported everything: its number, and the pipes of what it prints and says."""
    pipes, ready = [os.pipe() for _ in range(2)], os.pipe()  # no files: a limit on their size would cut what is said
    for pipe in pipes:
        fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 1 << 20)
    child = os.fork()
    if child:
        for pipe in (*pipes, ready):
            os.close(pipe[1])
        os.read(ready[0], 1)  # time counts from the command on, not from the fork
        os.close(ready[0])
        return child, [pipe[0] for pipe in pipes]
    code = 70
    try:
        for pipe, number in zip(pipes, (1, 2), strict=True):
            os.dup2(pipe[1], number)
        if fault.file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_limit, fault.file_limit))
        if fault.operation is not None:
            kill_at(fault.operation)
        os.environ["GLOT_STORE_DIR"] = str(place / "hidden")
        os.write(ready[1], b"1")
        code = glot_main(words)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:  # whatever comes out of a command is what is looked for
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(words: list[str], place: Path, fault: Fault = NONE) -> Ended:
    """Run a command with a fault."""
    (child, pipes), status = start(words, place, fault), None
    begun, send = time.monotonic(), fault.send
    while status is None:
        passed = time.monotonic() - begun
        if send is not None and passed >= send[1]:
            os.kill(child, send[0])
            send = None
        if passed > PATIENCE:
            os.kill(child, signal.SIGKILL)
        ended, found = os.waitpid(child, os.WNOHANG)
        status = found if ended else None
        time.sleep(0.002)
    out, said = (open(pipe, errors="replace").read() for pipe in pipes)  # noqa: SIM115 - a number, which is closed at the end
    return Ended(os.waitstatus_to_exitcode(status), out, said, time.monotonic() - begun)


def make_inputs(folder: Path) -> None:
    """A tiny backbone, a mirror, pairs, texts and a study file."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)).save_pretrained(folder / "bert")
    _word_tokenizer(special_tokens=True).save_pretrained(folder / "bert")
    cola = folder / "mirror/nyu-mll/glue/cola"
    for split, count in (("train", 160), ("validation", 40)):
        rows = [{**row, "sentence": f"{row['sentence']} {WORDS[5 + row['idx'] % 9]}"} for row in single_rows(count)]
        write_rows(cola / f"{split}.jsonl", rows)
    names = [f"{one} {other}" for one in WORDS[5:11] for other in WORDS[10:17]]
    write_rows(folder / "pairs.jsonl", [{"query": name, "pos": [f"the {name}"]} for name in names])
    write_rows(folder / "texts.jsonl", [{"sentence": row["sentence"]} for row in single_rows(300)])
    shared = {"model_name_or_path": str(folder / "bert"), "data_dir": str(folder / "mirror"), "task": "cola", "epochs": 2, "max_length": 16}
    plan = {"kind": "study", "name": "s", "runs_with": shared, "grid": {"lr": [0.01, 0.001]}, "seeds": [0, 1], "baseline": "mean"}
    (folder / "study.yaml").write_text(json.dumps({**plan, "arms": {"mean": {"pooling_method": "mean"}, "max": {"pooling_method": "max"}}}))


def commands(inputs: Path, place: Path) -> dict[str, list[str]]:
    """The commands that are disturbed."""
    store, out = f"--store_dir={place / 'hidden'}", f"--output_dir={place / 'runs'}"
    shared = ["run", f"--model_name_or_path={inputs / 'bert'}", out, "--verbose=0", "--log_every=1", "--run_name=run", "--max_length=16"]
    cola = [*shared, f"--data_dir={inputs / 'mirror'}", "--task=cola", "--epochs=12"]
    pairs = [*shared, "--task=embedding", f"--train_file={inputs / 'pairs.jsonl'}", f"--save_dir={place / 'saved'}", "--save_every=2"]
    texts = f"--input={inputs / 'texts.jsonl'}"
    return {
        "train": [*cola, store, "--pooling_method=glot", "--gat_hidden_dim=8"],
        "seeds": [*cola, store, "--pooling_method=adapool", "--seeds=0..2", "--epochs=4"],
        "stack": [*cola, store, "--pooling_method=adapool", "--seeds=0..2", "--stack_seeds=1"],
        "fine-tune": [*cola, "--pooling_method=mean", "--finetune_backbone=1", "--save_every=3", "--epochs=3"],
        "contrast": [*pairs, store, "--epochs=6", "--batch_size=8", "--heldout_fraction=0.3"],
        "sweep": ["sweep", str(inputs / "study.yaml"), out],
        "predict": ["predict", str(place / "trained"), texts, f"--output={place / 'labels.csv'}"],
        "encode": ["encode", str(place / "trained"), texts, f"--output={place / 'vectors.npy'}"],
        "export": ["export", str(place / "trained"), f"--to={place / 'exported'}"],
    }


def results(kind: str, place: Path, ended: Ended) -> dict[str, bytes]:
    """What a finished command leaves, by names that do not depend on the place."""
    if kind == "sweep":
        found = {f"{path.parent.name}/{path.name}": path for path in (place / "runs").rglob("runs/*/*") if path.name in CHECKED[:2]}
    elif kind in ("predict", "encode"):
        found = {"output": place / ("labels.csv" if kind == "predict" else "vectors.npy")}
    elif kind == "export":
        found = {str(path.relative_to(place)): path for path in (place / "exported").rglob("*") if path.suffix in (".safetensors", ".py")}
    else:
        run_dir = Path(json.loads(ended.out)["run_dir"])
        found = {str(path.relative_to(run_dir)): path for path in run_dir.rglob("*") if path.name in CHECKED}
    return {name: path.read_bytes() for name, path in sorted(found.items())}


def damage(draw: random.Random, place: Path) -> str | None:
    """Flip a bit of a file, or cut it; what was done, None where there is no such file."""
    names = ("tokens.bin", "plan.npz", "chunks.jsonl", "manifest.json", "model.safetensors", "predictions.csv", "result.json")
    files = [path for path in place.rglob("*") if path.is_file() and (path.name in names or path.match("training-*.pt"))]
    files = [path for path in files if path.stat().st_size and "exported" not in path.parts]  # a finished export is not ours any more
    if not files:
        return None
    path = draw.choice(sorted(files))
    data = bytearray(path.read_bytes())
    if draw.random() < 0.3:
        path.write_bytes(data[: draw.randrange(len(data))])
        return f"cut {path.name}"
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
    return f"flip {path.name}"


class Soak:
    """The loop and its counts."""

    def __init__(self, seed: int, root: Path) -> None:
        self.draw, self.root, self.inputs = random.Random(seed), root, root / "inputs"
        self.faults: collections.Counter[str] = collections.Counter()
        self.refused = self.tries = 0
        self.failures: list[str] = []
        self.expected: dict[str, tuple[dict[str, bytes], float]] = {}

    def prepare(self) -> None:
        """Inputs, a trained run, and what every command gives where nothing disturbs it."""
        if not (child := os.fork()):
            make_inputs(self.inputs)
            os._exit(0)
        os.waitpid(child, 0)
        for kind in commands(self.inputs, self.root):
            words, place = self.place_for(kind, f"calm/{kind}")
            ended = run(words, place)
            assert ended.code == 0, (kind, ended.said)
            self.expected[kind] = results(kind, place, ended), ended.seconds

    def place_for(self, kind: str, name: str) -> tuple[list[str], Path]:
        """A command and a new folder for what it writes, with a trained run in it where the command takes one."""
        place = self.root / name
        place.mkdir(parents=True)
        words = commands(self.inputs, place)[kind]
        if str(place / "trained") in words:
            shutil.copytree(self.root / "calm/train/runs/run", place / "trained")
        return words, place

    def once(self, number: int) -> None:
        """One command with one to three faults, and its repetition."""
        kind = self.draw.choice(list(self.expected))
        words, place = self.place_for(kind, f"try-{number}")
        seconds = self.expected[kind][1]
        story, damaged = [], False
        for _ in range(self.draw.randint(1, 3)):
            name, ended = self.disturb(words, place, seconds)
            damaged = damaged or name.startswith(("flip", "cut"))
            story.append(name)
            self.faults[name.split()[0]] += name != "nothing"
            if ended is not None and (ended.code not in (0, 1, 2, 130, 143, -2, -9, -15) or has_traceback(ended.said)):
                return self.fail(number, kind, story, ended)
        return self.compare(number, kind, story, place, damaged)

    def compare(self, number: int, kind: str, story: list[str], place: Path, damaged: bool) -> None:
        """The command again, now undisturbed: what it leaves must be what it leaves where nothing ever disturbed it."""
        words = commands(self.inputs, place)[kind]
        ended = run(words, place)
        if ended.code in (1, 2) and damaged and names_a_file(ended.said, place):
            self.refused += 1
            ended = self.follow_advice(words, place, ended)
        if ended.code == 2 and "is there already; choose" in ended.said:  # it was done when the signal came
            ended = ended._replace(code=0)
        self.tries += 1
        if ended.code != 0 or results(kind, place, ended) != self.expected[kind][0]:
            return self.fail(number, kind, story, ended)
        return shutil.rmtree(place)

    def every_operation(self, kind: str) -> int:
        """Kill a command at its first file operation, in another try at its second, and so on; how many it has."""
        for operation in itertools.count(1):
            name = f"{kind}-{operation}"
            words, place = self.place_for(kind, f"try-{name}")
            ended = run(words, place, Fault(operation=operation))
            if ended.code == 0:
                shutil.rmtree(place)
                return operation - 1
            self.compare(operation, kind, [f"kill at operation {operation}"], place, damaged=False)
        return 0

    def disturb(self, words: list[str], place: Path, seconds: float) -> tuple[str, Ended | None]:
        """One fault."""
        kind = self.draw.choice(("KILL", "operation", "TERM", "INT", "full", "damage"))
        if kind == "operation":
            operation = self.draw.randint(1, 40)
            return f"operation {operation}", run(words, place, Fault(operation=operation))
        if kind == "damage":
            return damage(self.draw, place) or "nothing", None
        if kind == "full":
            limit = int(2 ** self.draw.uniform(4, 18))
            return f"full at {limit}", run(words, place, Fault(file_limit=limit))
        after = self.draw.uniform(0, seconds)
        return f"{kind} after {after:.3f}", run(words, place, Fault((getattr(signal, f"SIG{kind}"), after)))

    def follow_advice(self, words: list[str], place: Path, ended: Ended) -> Ended:
        """What a refusal advises: the store anew, the run from a copy."""
        if "glot store rm" in ended.said and words[0] == "sweep":
            (store,) = (place / "hidden").iterdir()
            removed = run(["store", "rm", store.name, f"--store_dir={store.parent}"], place)
            return removed if removed.code else run(words, place)
        if "--override_precompute=1" in ended.said:
            return run([*words, "--override_precompute=1"], place)
        if (place / "trained").exists():
            shutil.rmtree(place / "trained")
            shutil.copytree(self.root / "calm/train/runs/run", place / "trained")
        return run(words, place)

    def fail(self, number: int, kind: str, story: list[str], ended: Ended) -> None:
        """Remember a failure; its folder stays."""
        self.failures.append(f"try {number}, {kind}: {'; '.join(story)}: exit {ended.code}: {ended.said[-1500:]}")


def has_traceback(said: str) -> bool:
    """Whether a command broke off in a way that is not ours; Python prints one more where a signal meets a destructor."""
    return "Traceback" in said.partition("Exception ignored in")[0]


def names_a_file(said: str, place: Path) -> bool:
    """Whether one line of an error names something in the folder."""
    return any(re.match(r"(error|failed): ", line) and str(place) in line for line in said.splitlines())


def soak(seconds: float, seed: int, operations: list[str], least: int = 0) -> int:
    """Loop until the time is up and `least` commands are done, or once through all file operations of some commands.

    Prints the counts, returns the number of failures.
    """
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    state = Soak(seed, root)
    state.prepare()
    end, number = time.monotonic() + seconds, 0
    while not operations and (time.monotonic() < end or number < least):
        number += 1
        state.once(number)
    for kind in [kind for kind in state.expected if kind in operations]:
        print(f"{kind}: {state.every_operation(kind)} file operations", flush=True)
    counts = ", ".join(f"{count} {name}" for name, count in state.faults.most_common())
    print(f"{state.tries} commands, each after {f'one to three faults ({counts})' if counts else 'a kill'}; seed {seed}")
    print(f"{state.refused} refused with the damaged file's name; {len(state.failures)} failures")
    for failure in state.failures:
        print(f"\n{failure}")
    if not state.failures:
        shutil.rmtree(root)
    return len(state.failures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Faults in a loop.")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=int, default=0, help="commands, however long they take")
    parser.add_argument("--operations", nargs="*", default=[], metavar="COMMAND")
    asked = parser.parse_args()
    raise SystemExit(bool(soak(asked.seconds, asked.seed, asked.operations, asked.least)))
