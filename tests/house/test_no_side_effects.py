"""Importing and running the package changes nothing in the caller's process."""

import logging
import subprocess
import sys

import torch
from conftest import ROOT

from glot import recipes
from glot.settings.flags import parse
from glot.training.switches import flushes_denormals, run_switches

PROGRAM = """
import logging, sys
import matplotlib
before = matplotlib.rcParams._get("backend")
levels = ("transformers", "datasets", "mteb", "glot")
import transformers, datasets
levels = {name: logging.getLogger(name).level for name in levels}
import glot, glot.recipes
from glot.report.plots import plot_demo
runs = [{"pooler": "mean", "model": "m", "history": [{"epoch": 1, "metrics": {"accuracy": 0.5}}]}]
plot_demo(runs, {"length alone": 0.6, "majority class": 0.5}, sys.argv[1])
assert matplotlib.rcParams._get("backend") == before
assert "matplotlib.pyplot" not in sys.modules
assert {name: logging.getLogger(name).level for name in levels} == levels
assert not logging.getLogger("glot").handlers
print("unchanged")
"""


def test_importing_and_drawing_leave_backend_and_log_levels_alone(tmp_path):
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "figure.png")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "unchanged\n", done.stderr
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_torchs_switch_is_put_back(tiny_flags, monkeypatch):
    before, seen = flushes_denormals(), []
    with run_switches():
        assert flushes_denormals()
    assert flushes_denormals() == before
    torch.set_flush_denormal(False)
    whole = recipes.load_inputs
    monkeypatch.setattr(recipes, "load_inputs", lambda config: seen.append(flushes_denormals()) or whole(config))
    recipes.run_task(parse(tiny_flags).config)
    assert seen == [True] and not flushes_denormals()


def test_what_is_said_goes_through_the_logger(tiny_flags, caplog, capsys):
    logger = logging.getLogger("glot")
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [], True
    try:
        with caplog.at_level(logging.INFO, "glot"):
            recipes.run_task(parse([word for word in tiny_flags if word != "--verbose=0"]).config.with_values(verbose=True, epochs=1))
    finally:
        logger.handlers, logger.propagate = handlers, propagate
    assert any("epoch 1/1" in record.getMessage() for record in caplog.records)
    assert "epoch 1/1" not in capsys.readouterr().out


LOADED = "import sys; from glot.cli import glot_main; assert not glot_main(sys.argv[1:]); print(*sys.modules, sep='\\n', file=sys.stderr)"
"""A command, and the names of the modules that it leaves loaded, on stderr."""


def test_a_run_on_a_store_loads_no_library_that_it_does_not_use(tiny_flags):
    recipes.run_task(parse(tiny_flags).config)  # writes the store
    unused = ("matplotlib", "datasets", "torch._dynamo", "torch_geometric", "mteb", "sentence_transformers", "peft", "accelerate", "wandb")
    words = [sys.executable, "-c", LOADED, "run", *tiny_flags, "--seed=7", "--num_workers=0"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stderr.splitlines())
    assert '"seed": 7' in done.stdout and "sklearn" in loaded
    assert not loaded & {*unused, "transformers.modeling_utils", "tokenizers"}


def test_a_list_of_runs_needs_neither_torch_nor_numpy(tiny_flags, tmp_path):
    recipes.run_task(parse(tiny_flags).config)
    for command in ("runs", "report"):
        words = [sys.executable, "-c", LOADED, command, str(tmp_path / "runs")]
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True)
        assert "cola" in done.stdout and not set(done.stderr.splitlines()) & {"torch", "numpy", "transformers", "sklearn"}
