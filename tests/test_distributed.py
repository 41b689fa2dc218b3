"""Two processes over gloo, as torchrun starts them: the same store, the same training, the same scores as one process."""

import json
import os
import socket
import subprocess
import sys
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import ROOT, write_rows
from safetensors.torch import load_file

from glot.cli import glot_main, main
from glot.data.loader import _Rows
from glot.distributed import Processes
from glot.states.store import writer
from glot.types import TokenBatch

pytestmark = pytest.mark.slow

FAREWELL = 2.0
"""Seconds that a process has after another one failed."""

SMALL_CHUNKS = """
import json, sys
from glot.states.store import writer
writer.CHUNK_TOKENS = 12
{before}
from glot import distributed
from glot.cli import main
commands, leave, code = json.loads(sys.argv[1]), distributed.Processes.leave, 0
for place, words in enumerate(commands):
    distributed.Processes.leave = leave if place == len(commands) - 1 else lambda self: None  # one group for all commands
    code = main(words) or code
raise SystemExit(code)
"""


def written(commands: list[list[str]], folder: Path, before: str = "") -> list[str]:
    """A program like `main.py`, with chunks of a few texts, and one command line after the other for it."""
    program = folder / "program.py"
    program.write_text(SMALL_CHUNKS.format(before=before))
    return [str(program), json.dumps([[*flags, "--report_to=none"] for flags in commands])]


def torchrun_two(commands: list[list[str]], folder: Path) -> subprocess.CompletedProcess:
    """Two processes as torchrun starts them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *launcher, *written(commands, folder)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)


def start_two(commands: list[list[str]], folder: Path, before: str = "") -> processes.Ended:
    """Two processes with torchrun's environment; where one fails, the other is killed, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words, group = written(commands, folder, before), {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    two = [processes.Started(words, env={**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank}, cwd=folder) for rank in "01"]
    left = {one.process.sentinel: one.process for one in two}
    while left:
        for ended in wait(left):
            failed = left.pop(ended).exitcode != 0
            for other in left.values() if failed else ():
                other.join(FAREWELL)  # time to say a mistake of its own
                other.kill()
    codes, printed, said = zip(*(one.wait() for one in two), strict=True)
    return processes.Ended(next((code for code in codes if code), 0), "".join(printed), "".join(said))


def results_of(text: str) -> list[dict]:
    """The JSON objects that commands printed, one behind the other."""
    found, at, decoder = [], 0, json.JSONDecoder()
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        result, at = decoder.raw_decode(text, at)
        found.append(result)
    return found


def assert_equal(one: dict, two: dict, folders: list[Path]) -> None:
    """The results of one process and of two, their weights, scores and stores."""
    weights = [load_file(Path(result["run_dir"]) / "model.safetensors") for result in (one, two)]
    unseen = "pooler.score_layer.2.bias"  # the softmax cancels it: its gradient is rounding, which Adam makes a step of
    for name, weight in [(name, weight) for name, weight in weights[0].items() if name != unseen]:
        assert torch.allclose(weight, weights[1][name], atol=1e-4), name
    assert [epoch["train_loss"] for epoch in one["history"]] == pytest.approx([epoch["train_loss"] for epoch in two["history"]], abs=1e-4)
    assert one["best"]["metrics"] == pytest.approx(two["best"]["metrics"], abs=1e-4)
    stores = [next((folder / "hidden").glob("*")) for folder in folders]
    assert (stores[0] / "tokens.bin").read_bytes() == (stores[1] / "tokens.bin").read_bytes()
    assert len((stores[1] / "1.chunks.jsonl").read_text().splitlines()) > 1  # the second process did its share
    assert [path.name for path in (folders[1] / "runs").glob("*")] == ["run"]  # and left no folder of its own


@pytest.fixture
def pair_flags(tiny_bert, tmp_path) -> list[str]:
    """Contrastive training on 15 distinct rows, of which some have a negative: batches of 4, one of 2 or 1."""
    words = ["red", "blue", "green", "big", "small"]
    rows = [
        {"query": f"the {a} cat {b}", "pos": [f"a {a} dog {b}"], "neg": [f"not {a} {b}"] if row % 4 == 0 else []}
        for row, (a, b) in enumerate((a, b) for a in words for b in words[:3])
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    return [
        "--task=embedding",
        f"--model_name_or_path={tiny_bert}",
        f"--train_file={tmp_path / 'pairs.jsonl'}",
        f"--save_dir={tmp_path / 'saved'}",
        "--max_length=16",
        "--batch_size=4",
        "--hard_negatives=1",
        "--epochs=3",
        "--lr=1e-2",
    ]


def test_two_processes_train_as_one(tmp_path, capsys, monkeypatch, tiny_bert, mirror, pair_flags):
    """Rows of labels, of which one process has none in the last batch; negatives of all processes; weights that get no gradient."""
    labelled = [
        f"--model_name_or_path={tiny_bert}",
        f"--data_dir={mirror}",
        "--max_length=16",
        "--pooling_method=glot",
        "--gat_hidden_dim=8",
    ]
    kinds = {
        "rows": [*labelled, "--task=cola", "--batch_size=8", "--tau=0.2", "--lr=1e-2"],  # 41 rows
        "pairs": [*pair_flags, "--pooling_method=adapool"],
        "no edges": [*labelled, "--task=stsb", "--epochs=1", "--graph_adj=none"],
    }
    monkeypatch.setattr(writer, "CHUNK_TOKENS", 12)
    commands: dict[int, list[list[str]]] = {1: [], 2: []}
    for count in commands:
        for kind, flags in kinds.items():
            folder = tmp_path / kind / str(count)
            own = [f"--output_dir={folder / 'runs'}", f"--store_dir={folder / 'hidden'}", f"--save_dir={folder / 'saved'}"]
            own = [word for word in own if kind == "pairs" or "save_dir" not in word]
            commands[count].append([*flags, *own, "--run_name=run", "--verbose=0"])
    capsys.readouterr()
    assert [main(words) for words in commands[1]] == [0, 0, 0]
    alone = results_of(capsys.readouterr().out)
    two_processes = torchrun_two(commands[2], tmp_path)
    assert two_processes.returncode == 0, two_processes.stderr[-2000:]
    assert "Warning" not in two_processes.stderr
    together = results_of(two_processes.stdout)  # the first process's results and no other
    for kind, one, two in zip(kinds, alone, together, strict=True):
        assert_equal(one, two, [tmp_path / kind / str(count) for count in commands])
    assert alone[1]["history"][-1]["train_loss"] < alone[1]["history"][0]["train_loss"]


def test_a_store_that_a_dead_process_left_is_completed(tmp_path, capsys, monkeypatch, tiny_flags):
    monkeypatch.setattr(writer, "CHUNK_TOKENS", 12)
    dies = """
import os
from glot.states.store import writer
remember = writer._remember
def _remember(path, done, mode="w"):
    remember(path, done, mode)
    if path.name == "1.chunks.jsonl":
        os._exit(9)
writer._remember = _remember
"""
    dead = start_two([tiny_flags], tmp_path, dies)
    assert dead.returncode != 0
    (folder,) = (tmp_path / "hidden").iterdir()
    assert not (folder / "manifest.json").exists()
    assert (folder / "1.chunks.jsonl").read_text().count("\n") == 1
    assert main([*tiny_flags, "--verbose=1"]) == 0
    assert "chunks are there, going on" in capsys.readouterr().err
    finished = [json.loads(line) for line in (folder / "chunks.jsonl").read_text().splitlines()]
    manifest = json.loads((folder / "manifest.json").read_text())
    edges = [0, *sorted(line["last"] for line in finished)]  # one behind the other, each once
    assert sorted(line["first"] for line in finished) == edges[:-1] and edges[-1] == manifest["num_sentences"]
    assert len(finished) == manifest["chunks"]
    assert not (folder / "1.chunks.jsonl").exists()


def test_a_mistake_is_said_by_every_process_in_one_line(tmp_path, tiny_flags):
    done = start_two([[*tiny_flags, "--finetune_backbone=1"]], tmp_path)
    lines = [line for line in done.stderr.splitlines() if "finetune_backbone" in line]
    assert sorted(line.split("--finetune")[0] for line in lines) == ["error: ", "process 1: error: "]
    assert f'File "{ROOT / "glot"}' not in done.stderr


@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--pooling_method=mlp", "batch norm"),
        ("--pooling_method=glot --gnn_type=gin", "batch norm"),
        ("--pooling_method=glot --gnn_type=gine", "batch norm"),
        ("--backbone_dtype=auto", "auto"),
        ("--seeds=0,1 --stack_seeds=1", "torchrun"),
        ("--task=mteb", "one process"),
        ("--finetune_backbone=1", "backbones apart"),
        ("--finetune_backbone=lora", "backbones apart"),
    ],
)
def test_what_cannot_be_shared_is_refused(monkeypatch, capsys, tiny_flags, flag, named):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main([*tiny_flags, *flag.split()]) == 2
    assert named in capsys.readouterr().err


def test_other_commands_are_for_one_process(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert glot_main(["report", "somewhere"]) == 2
    assert "one process" in capsys.readouterr().err


class Numbered:
    """A token source whose state is its row's number."""

    hidden_size = 1

    def gather(self, rows: np.ndarray) -> TokenBatch:
        return TokenBatch.from_lengths(torch.as_tensor(rows, dtype=torch.float32).unsqueeze(1), torch.ones(len(rows), dtype=torch.int64))

    read = gather


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_shares_join_to_the_whole_batch(size):
    negatives = np.array([[20, -1], [-1, -1], [21, 22], [-1, -1], [23, -1], [-1, -1], [-1, -1], [24, 25]])
    sides = (np.arange(8), np.arange(8) + 10, negatives)
    rows = list(range(8))[::-1][:size]
    whole = _Rows(sides, None, Numbered(), Processes())[rows]
    parts = [_Rows(sides, None, Numbered(), Processes(rank, 3))[rows] for rank in range(3)]
    for side, expected in enumerate(whole.sides):
        own = [part.sides[side].tokens[: part.shares[side][rank]] for rank, part in enumerate(parts)]
        assert torch.equal(torch.cat(own), expected.tokens)
        assert all(len(part.sides[side]) > 0 for part in parts)  # nobody is without a row, or it would fall out of step
    assert {len(part) for part in parts} == {size}


DIES = """
import os
from glot import recipes
whole, calls = recipes.training_loss, []
def make(*arguments):
    loss = whole(*arguments)
    def counted(output, labels):
        calls.append(1)
        if len(calls) == 5:
            os._exit(1)
        return loss(output, labels)
    return counted
recipes.training_loss = make
"""


def test_two_processes_go_on_with_a_training_that_two_others_left(tiny_flags, tmp_path):
    words = [*tiny_flags, "--pooling_method=glot", "--gat_hidden_dim=8", "--epochs=3", "--run_name=run", "--lr=1e-2", "--batch_size=16"]
    calm = start_two([[*words, f"--output_dir={tmp_path}/calm"]], tmp_path)
    assert calm.returncode == 0, calm.stderr[-2000:]
    assert start_two([words], tmp_path, DIES).returncode != 0
    assert len(list((tmp_path / "runs/run").glob("training-00000003-*.pt"))) == 1  # three steps per epoch
    done = start_two([words], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(note.startswith("went on from epoch 2, step 3") for note in json.loads(done.stdout)["notes"])
    for name in ("model.safetensors", "predictions.csv", "metrics.jsonl"):
        assert (tmp_path / "runs/run" / name).read_bytes() == (tmp_path / "calm/run" / name).read_bytes(), name
