"""A training that was broken off goes on: weights, predictions and record are those of a run that nobody disturbed."""

import errno
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch

from glot import recipes
from glot.cli import glot_main, main
from glot.training import resume
from glot.training import run as run_module
from glot.training.folders import MARK, FolderLock
from glot.training.tracking import JsonlTracker

ROOT = Path(__file__).parents[2]
KEPT = ("model.safetensors", "predictions.csv", "metrics.jsonl")


class Killed(BaseException):
    """What a test ends a process with, in place of a signal that cannot be caught."""


def run(capsys, words: list[str]) -> dict:
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def die_at(monkeypatch, call: int) -> None:
    """The training loss raises at one of its calls, in the middle of a step."""
    whole, calls = recipes.training_loss, []

    def make(*arguments):
        loss = whole(*arguments)

        def counted(output, labels):
            calls.append(1)
            if len(calls) == call:
                raise Killed
            return loss(output, labels)

        return counted

    monkeypatch.setattr(recipes, "training_loss", make)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The files of a run, or of all runs of `--seeds`, that must be equal."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.name in KEPT}


@pytest.fixture
def pairs(tiny_bert, tmp_path) -> list[str]:
    lines = [
        json.dumps({"query": f"{a} {b}", "pos": [f"the {a} {b}"]}) for a in ("red", "blue", "big") for b in ("cat", "dog", "runs", "a")
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    words = f"--task=embedding --train_file={tmp_path}/pairs.jsonl --model_name_or_path={tiny_bert} --max_length=12 --verbose=0 --lr=1e-2"
    words += f" --epochs=3 --batch_size=4 --heldout_fraction=0.3 --store_dir={tmp_path}/hidden --log_every=1 --save_dir={tmp_path}/saved"
    return words.split()


KINDS = {
    "glot": (["--pooling_method=glot", "--gat_hidden_dim=8", "--tau=0.1"], 5),
    "batch norm": (["--pooling_method=mlp"], 4),
    "a fixed pooler": (["--pooling_method=max", "--selection=last"], 5),
    "before the first save": (["--pooling_method=max"], 2),
    "readers ahead": (["--pooling_method=adapool", "--num_workers=1"], 5),
    "live states": (["--pooling_method=adapool", "--precompute_hidden_states=0"], 4),
    "stacked seeds": (["--pooling_method=adapool", "--seeds=0..2", "--stack_seeds=1"], 4),
    "the second of two seeds": (["--pooling_method=adapool", "--seeds=3,4"], 12),
    "fine-tuning with dropout, saved in the epoch": (["--pooling_method=mean", "--finetune_backbone=1", "--save_every=1"], 4),
    "an adapter under autocast": (
        ["--pooling_method=adapool", "--finetune_backbone=lora", "--backbone_lr=1e-2", "--backbone_dtype=autocast", "--save_every=2"],
        6,
    ),
    "a random graph": (["--pooling_method=glot", "--gat_hidden_dim=8", "--graph_adj=random"], 5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_broken_off_equals_one_that_was_not(kind, tiny_flags, tmp_path, monkeypatch, capsys):
    words, call = KINDS[kind]
    live = {"--precompute_hidden_states=0", "--finetune_backbone=1", "--finetune_backbone=lora"} & set(words)
    tiny_flags = [word for word in tiny_flags if not (live and word.startswith("--store_dir"))]
    words = [*tiny_flags, "--lr=1e-2", "--epochs=4", "--batch_size=16", "--log_every=1", "--run_name=run", *words]  # three steps per epoch
    run(capsys, [*words, f"--output_dir={tmp_path}/calm"])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, call)
        main(words)
    assert not (tmp_path / "runs/run/result.json").exists()
    torch.manual_seed(9), random.seed(9), np.random.seed(9)  # another process has other states
    (next((tmp_path / "runs").rglob("config.json")).parent / "training.partial").write_bytes(b"half of a state")
    result = run(capsys, words)
    assert [path.name for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")] == ["run"]
    assert not list((tmp_path / "runs").rglob("training*"))
    expected = bytes_of(tmp_path / "calm/run")
    assert len(expected) >= len(KEPT) and bytes_of(tmp_path / "runs/run") == expected
    notes = [note for one in result.get("runs", [result]) for note in one["notes"] if note.startswith("went on from epoch")]
    assert bool(notes) == (kind != "before the first save") and ("saved in the epoch" not in kind or "step 3," in notes[0])
    assert run(capsys, words)["run_dir"].endswith("run-2")  # a finished one is left alone


@pytest.mark.parametrize("every", [0, 1])
def test_contrastive_training_goes_on_within_an_epoch(every, pairs, tmp_path, monkeypatch, capsys):
    words = [*pairs, f"--save_every={every}", "--run_name=run", f"--output_dir={tmp_path}/runs"]
    run(capsys, [*words, f"--output_dir={tmp_path}/calm", f"--save_dir={tmp_path}/calm-saved"])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 4)  # two steps per epoch
        main(words)
    (state,) = (tmp_path / "runs/run").glob("training-*.pt")
    assert state.name.startswith("training-00000003-" if every else "training-00000002-")
    result = run(capsys, words)
    assert bytes_of(tmp_path / "runs/run") == bytes_of(tmp_path / "calm/run")
    assert any(note.startswith("went on from epoch") for note in result["notes"]) and not state.exists()


def test_a_state_is_taken_up_by_the_same_run_alone(tiny_flags, tmp_path, monkeypatch, capsys):
    words = [*tiny_flags, "--pooling_method=adapool", "--epochs=4", "--run_name=run"]

    def break_off(*more: str) -> None:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            die_at(patch, 5)
            main([*words, *more])

    break_off()
    other = run(capsys, [*words, "--lr=3e-3"])
    assert other["run_dir"].endswith("run-2") and not any("went on" in note for note in other["notes"])
    anew = run(capsys, [*words, "--resume=0"])
    assert anew["run_dir"].endswith("run-3") and not any("went on" in note for note in anew["notes"])
    (state,) = (tmp_path / "runs/run").glob("training-*.pt")
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 4
    state.write_bytes(data)
    assert main(words) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert f"{state}: is not what was written, so it is not taken up" in captured.err
    assert result["run_dir"].endswith("/run") and not any("went on" in note for note in result["notes"])
    assert result["best"] == anew["best"] and not state.exists()


def test_a_folder_in_which_another_process_works_is_left_alone(tiny_flags, tmp_path, monkeypatch, capsys):
    words = [*tiny_flags, "--pooling_method=adapool", "--epochs=4", "--run_name=run"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 5)
        main(words)
    path = str(tmp_path / "runs/run" / MARK)
    code = f"import fcntl, time; h = open({path!r}); fcntl.flock(h, fcntl.LOCK_EX); print(1, flush=True); time.sleep(60)"
    FolderLock(tmp_path / "runs/run").release()  # the one that the broken run of this thread left
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert holder.stdout.readline()
    try:
        assert run(capsys, words)["run_dir"].endswith("run-2")
        assert main([*words, "--overwrite=1", "--lr=3e-3"]) == 2
        assert f"another process works in {tmp_path}/runs/run; wait for it" in capsys.readouterr().err
    finally:
        holder.kill()
        holder.wait()
    result = run(capsys, words)
    assert result["run_dir"].endswith("/run") and any("went on" in note for note in result["notes"])


def test_a_record_that_a_full_disk_does_not_take_waits(tmp_path, caplog):
    tracker, steps = JsonlTracker(tmp_path / "metrics.jsonl"), range(0, 100, 10)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (70, limits[1]))  # a file of 70 bytes is as full as a disk
        for step in steps:
            tracker.log({"loss/step": 0.5}, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert caplog.text.count("training goes on, make room before it ends") == 1
    tracker.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == list(steps)


def test_a_state_that_a_full_disk_does_not_take_stops_no_training(tiny_flags, tmp_path, monkeypatch, capsys):
    words = [*tiny_flags, "--pooling_method=adapool", "--epochs=3", "--run_name=run", "--log_every=1"]
    expected = run(capsys, [*words, f"--output_dir={tmp_path}/calm"])

    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume.torch, "save", refuse)
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err.count("training goes on, and cannot be taken up from here") == 1
    assert json.loads(captured.out)["best"] == expected["best"]
    assert not list((tmp_path / "runs/run").glob("training*"))


def wait_for_states(runs: Path, count: int) -> None:
    """Until so many trainings have saved their state, and a little longer."""
    deadline = time.monotonic() + 120
    while len(list(runs.rglob("training-*.pt"))) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)


@pytest.fixture
def one_thread():
    """As in the processes that a test starts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_what_was_trained(number, tiny_flags, tmp_path, capsys):
    words = [*(word for word in tiny_flags if word != "--verbose=0"), "--pooling_method=glot", "--epochs=60", "--run_name=run"]
    process = processes.Started(["main.py", *words])
    wait_for_states(tmp_path / "runs", 1)
    process.send_signal(number)
    code, _, said = process.wait()
    assert code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number], said
    (state,) = (tmp_path / "runs/run").glob("training-*.pt")
    saved, last = said.splitlines()[-2:]
    assert saved.startswith("saved after step ") and saved.endswith(str(state))
    what = {signal.SIGTERM: "told to end", signal.SIGINT: "stopped"}[number]
    assert last == f"{what}; the same command, given again, goes on from what was saved"
    result = run(capsys, words)
    assert any(note.startswith("went on from epoch") for note in result["notes"])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["run"]
    run(capsys, [*words, f"--output_dir={tmp_path}/calm"])
    assert bytes_of(tmp_path / "runs/run") == bytes_of(tmp_path / "calm/run")


STUDY = """
kind: study
name: long
runs_with: {model_name_or_path: MODEL, task: cola, max_length: 16, epochs: 60}
grid: {tau: [0.1, 0.5]}
arms: {glot: {pooling_method: glot}}
seeds: [0]
baseline: glot
"""


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("jobs", [2])
def test_a_study_that_is_told_to_end_saves_its_running_trainings(jobs, tiny_bert, mirror, tmp_path, monkeypatch):
    study = tmp_path / "study.yaml"
    study.write_text(STUDY.replace("MODEL", str(tiny_bert)))
    places = {"GLOT_DATA_DIR": str(mirror), "GLOT_STORE_DIR": str(tmp_path / "hidden")}
    command = ["-m", "glot", "sweep", str(study), f"--jobs={jobs}", f"--output_dir={tmp_path / 'broken'}"]
    process = processes.Started(command, env={**os.environ, **places})
    wait_for_states(tmp_path / "broken", jobs)
    process.send_signal(signal.SIGTERM)
    code, _, said = process.wait()
    assert code == 143 and "Traceback" not in said, said
    assert len(list((tmp_path / "broken").rglob("training-*.pt"))) == jobs
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    runs = {}
    for where in ("broken", "calm"):
        assert glot_main(["sweep", str(study), f"--output_dir={tmp_path / where}"]) == 0
        runs[where] = {path.parent.name: path for path in (tmp_path / where).rglob("runs/*/result.json")}
    assert len(runs["broken"]) == 2 and runs["broken"].keys() == runs["calm"].keys()
    went_on = [any("went on" in note for note in json.loads(path.read_text())["notes"]) for path in runs["broken"].values()]
    assert sum(went_on) == jobs
    for name, path in runs["broken"].items():
        assert bytes_of(path.parent) == bytes_of(runs["calm"][name].parent)


def test_a_full_disk_at_the_end_is_asked_about_on_a_terminal(tiny_flags, tmp_path, monkeypatch, capsys):
    words = [*(word for word in tiny_flags if word != "--verbose=0"), "--pooling_method=adapool", "--run_name=run"]
    expected = run(capsys, [*words, f"--output_dir={tmp_path}/calm"])
    whole = run_module.save_model

    def refuse(folder, model):
        if folder.is_relative_to(tmp_path / "runs"):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        whole(folder, model)

    monkeypatch.setattr(run_module, "save_model", refuse)
    terminal = io.StringIO(f"\n/dev/null/x\n{tmp_path}/elsewhere\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    assert main(words) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err.count("runs/run: cannot be written (No space left on device); what was trained is still in memory") == 3
    assert result["run_dir"] == str(tmp_path / "elsewhere/run") and result["best"] == expected["best"]
    assert bytes_of(tmp_path / "elsewhere/run") == bytes_of(tmp_path / "calm/run")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main([*words, "--seed=1"]) == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    (state,) = (tmp_path / "runs/run-2").glob("training-*.pt")  # nothing was trained for nothing
    monkeypatch.setattr(run_module, "save_model", whole)
    assert any("went on from epoch 3" in note for note in run(capsys, [*words, "--seed=1"])["notes"]) and not state.exists()


def test_a_damaged_seed_is_done_anew_in_its_place_and_a_damaged_store_is_built_anew(tiny_flags, tmp_path, capsys):
    words = [*tiny_flags, "--pooling_method=adapool", "--epochs=2", "--run_name=run", "--seeds=0..2"]
    run(capsys, words)
    expected = bytes_of(tmp_path / "runs/run")
    (tmp_path / "runs/run/result.json").unlink()  # as a process leaves it that ended before
    path = tmp_path / "runs/run/seed-1/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (plan,) = (tmp_path / "hidden").glob("*/plan.npz")
    plan.write_bytes(plan.read_bytes()[:-9])
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "plan.npz" in line and line.endswith("build it anew with --override_precompute=1, or remove it with glot store rm")
    result = run(capsys, [*words, "--override_precompute=1"])
    assert sorted(folder.name for folder in (tmp_path / "runs/run").iterdir() if folder.is_dir()) == ["seed-0", "seed-1", "seed-2"]
    assert bytes_of(tmp_path / "runs/run") == expected and len(result["runs"]) == 3
