"""The smaller commands: doctor, init, version, first steps, completion."""

import os
import resource
import subprocess
import sys

import pytest
import torch

import glot
from glot import doctor
from glot.cli import glot_main, main
from glot.doctor import Finding


def test_doctor_says_what_is_there(monkeypatch, tmp_path, capsys):
    assert glot_main(["doctor", f"--store_dir={tmp_path / 'hidden'}"]) == 0
    out = capsys.readouterr().out
    for what in ("python ", "torch ", "cpu ", "accelerator ", "minilm ", "hub ", "data folder ", "stores "):
        assert what in out, what
    assert "HF_HUB_OFFLINE=1" in out and "0 stores" in out and "BROKEN" not in out
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "no-such-library"))
    assert glot_main(["doctor"]) == 1
    assert "BROKEN no-such-library" in capsys.readouterr().out


def test_doctor_asks_the_hub(monkeypatch):
    monkeypatch.setattr("glot.hub.is_offline", lambda: False)
    monkeypatch.setattr("glot.hub.endpoint", lambda: "http://127.0.0.1:9")  # the port that discards
    found = doctor._hub()
    assert isinstance(found, Finding) and "cannot be reached" in found.found and not found.broken


def test_init_writes_a_study_that_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert glot_main(["init", "mine.yaml"]) == 0 and glot_main(["sweep", "mine.yaml", "--dry_run"]) == 0
    assert "56 runs in all" in capsys.readouterr().out
    for words, complaint in (
        (["init", "mine.yaml"], "mine.yaml: is there already"),
        (["init", "mine.txt"], "mine.txt: must end in .yaml"),
        (["export", "runs/x", "--to="], "argument --to: is empty; give a path"),
        (["sweep", ""], "argument file: is empty; give a path"),
        (["init", "none/mine.yaml"], "none/mine.yaml: cannot be written"),
        (["new", "pooler", "1st.py"], "1st.py: its name must make a Python name"),
    ):
        assert glot_main(words) == 2
        assert complaint in capsys.readouterr().err


def test_version_first_steps_and_help(capsys):
    assert glot_main(["--version"]) == 0 and capsys.readouterr().out == f"glot {glot.__version__}\n"
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "--task=stress" in out and "--task=custom" in out
    with pytest.raises(SystemExit):
        main(["--help"])
    short = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help_all"])
    whole = capsys.readouterr().out
    assert short.index("examples:") < short.index("backbone:") and "--proj_dim" not in short and "--proj_dim" in whole
    assert len(whole.splitlines()) > len(short.splitlines()) + 40


def test_the_shell_completes_flags():
    own = {**os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_TYPE": "9"}
    for line, expected in (("glot run --pooling_m", "--pooling_method"), ("glot re", "report\nrerun")):
        code = "import os, sys; os.dup2(1, 8); from glot.cli import glot_main; glot_main([])"
        env = {**own, "COMP_LINE": line, "COMP_POINT": str(len(line))}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
        assert sorted(word.strip() for word in done.stdout.replace("\x0b", "\n").split("\n") if word.strip()) == expected.split("\n")


def test_a_full_disk_is_one_line(tiny_flags, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "/data/x")

    monkeypatch.setattr("glot.training.run.save_model", full)
    assert main([*tiny_flags, "--pooling_method=mean", "--epochs=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: /data/x: cannot be written (No space left on device); make room, or name other folders"


@pytest.mark.parametrize("said", ["CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has", "Unable to allocate 2.00 GiB for an array"])
def test_memory_that_is_used_up_is_one_line(said, tiny_flags, monkeypatch, capsys):
    def full(*_, **__):
        raise MemoryError(said) if said.startswith("Unable") else torch.OutOfMemoryError(said)

    monkeypatch.setattr("glot.training.run.save_model", full)
    assert main([*tiny_flags, "--pooling_method=mean", "--epochs=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: memory: there is no room for another 2.00 GiB; set a smaller --batch_size")


def test_a_pooler_that_memory_cannot_hold(tiny_flags, capsys):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 38, limits[1]))  # 4 TiB are refused even where memory is promised without a bound
    try:
        assert main([*tiny_flags, "--pooling_method=glot", f"--gat_hidden_dim={1 << 20}", "--epochs=1"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert "error: memory: there is no room for another 4398046511104 bytes; set a smaller" in capsys.readouterr().err


def test_other_errors_of_torch_stay_tracebacks(tiny_flags, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("glot.training.run.save_model", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        main([*tiny_flags, "--pooling_method=mean", "--epochs=1"])
