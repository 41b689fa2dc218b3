"""Seeds that train side by side end where their single runs end."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from glot.cli import main
from glot.nn.graph import DENSE_TOKENS, RULES
from glot.nn.heads import SingleHead
from glot.nn.model import SentenceModel
from glot.nn.poolers.fixed import MeanPooler
from glot.nn.stack import StackedModel
from glot.settings.choices import LONGEST_STACKED

SMALL = {"glot": ["--gat_hidden_dim=8", "--tau=0.2"], "latent": ["--gat_hidden_dim=8"], "adapool": ["--scorer_hidden=8"]}


def run(capsys, words: list[str]) -> dict:
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def read_outputs(path: Path) -> np.ndarray:
    """Scores per class, or the cosine: (S, C) or (S, 1)."""
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in rows[0] if name.startswith("score_")] or ["prediction"]
    return np.array([[float(row[name]) for name in names] for row in rows])


def assert_stacked_equals_alone(capsys, flags: list[str]) -> None:
    """Three stacked seeds against three runs of one seed with the same batch order."""
    together = run(capsys, [*flags, "--seeds=3,1,5", "--stack_seeds=1"])["runs"]
    for stacked, seed in zip(together, (3, 1, 5), strict=True):
        alone = run(capsys, [*flags, f"--seed={seed}", "--order_seed=3"])
        assert stacked["seed"] == seed
        for epoch, other in zip(stacked["history"], alone["history"], strict=True):
            assert epoch["train_loss"] == pytest.approx(other["train_loss"], abs=1e-4)
            assert epoch["metrics"] == pytest.approx(other["metrics"], abs=1e-4)
        assert stacked["best"]["epoch"] == alone["best"]["epoch"]
        assert stacked["trainable_params"] == alone["trainable_params"]
        folders = [Path(result["run_dir"]) for result in (stacked, alone)]
        lines = [(folder / "metrics.jsonl").read_text().count("\n") for folder in folders]
        assert lines[0] == lines[1]
        outputs = [read_outputs(folder / "predictions.csv") for folder in folders]
        assert np.abs(outputs[0] - outputs[1]).max() < 2e-3
    assert len({result["history"][0]["train_loss"] for result in together}) == 3  # they are different models


@pytest.mark.parametrize("pooler", ["cls", "mean", "max", "weightedmean", "std", "gated", "adapool", "pma", "latent"])
def test_stacked_seeds_are_their_single_runs(capsys, tiny_flags, pooler):
    assert_stacked_equals_alone(
        capsys, [*tiny_flags, f"--pooling_method={pooler}", *SMALL.get(pooler, []), "--epochs=3", "--lr=1e-2", "--batch_size=8"]
    )


@pytest.mark.parametrize(
    "flags", [["--lr_schedule=cosine", "--warmup_ratio=0.2"], ["--early_stop=1", "--selection=heldout", "--data_seed=0"]]
)
def test_stacked_seeds_follow_a_schedule_and_stop_early_as_single_ones(capsys, tiny_flags, flags):
    words = [
        *tiny_flags,
        "--pooling_method=adapool",
        *SMALL["adapool"],
        "--epochs=6",
        "--lr=5e-2",
        "--batch_size=8",
        "--log_every=1",
        *flags,
    ]
    assert_stacked_equals_alone(capsys, words)


@pytest.mark.parametrize("graph", sorted(RULES))
def test_stacked_glot_on_every_graph(capsys, tiny_flags, graph):
    own = ["--data_seed=1"] if graph == "random" else []
    assert_stacked_equals_alone(
        capsys, [*tiny_flags, "--pooling_method=glot", *SMALL["glot"], *own, f"--graph_adj={graph}", "--epochs=2", "--lr=1e-2"]
    )


def test_stacked_glot_on_edges(capsys, tiny_flags, monkeypatch):
    monkeypatch.setattr("glot.nn.graph.SPARSE_TOKENS", 1)
    monkeypatch.setattr("glot.nn.graph.SPARSE_DENSITY", 1.0)
    assert_stacked_equals_alone(capsys, [*tiny_flags, "--pooling_method=glot", *SMALL["glot"], "--epochs=2", "--lr=1e-2"])


@pytest.mark.parametrize("jump", ["max", "mean"])
def test_stacked_jumps_and_pairs(capsys, tiny_flags, jump):
    assert_stacked_equals_alone(
        capsys, [*tiny_flags, "--task=stsb", "--pooling_method=glot", *SMALL["glot"], f"--jk_mode={jump}", "--lr=1e-2"]
    )


def test_several_splits_and_the_summary(capsys, tiny_flags):
    flags = [*tiny_flags, "--task=mnli", "--pooling_method=mean", "--selection=last"]
    assert_stacked_equals_alone(capsys, flags)
    result = run(capsys, [*flags, "--seeds=0..3", "--stack_seeds=1"])
    assert result["summary"]["accuracy"]["n"] == 4 and "accuracy_mm" in result["summary"]
    assert "trained side by side with 3 other seeds: seconds are those of all 4" in result["runs"][0]["notes"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--pooling_method=mlp", "batch norm"),
        ("--pooling_method=glot --gnn_type=gin", "--gnn_type=gin: only gat"),
        ("--pooling_method=glot --jk_mode=lstm", "--jk_mode=lstm"),
        ("--pooling_method=glot --adaptive_length=1", "--adaptive_length=1"),
        ("--finetune_backbone=1", "--finetune_backbone=full: there is one backbone"),
    ],
)
def test_what_cannot_be_stacked_is_refused(capsys, tiny_flags, flags, named):
    assert main([*tiny_flags, "--seeds=0,1", "--stack_seeds=1", *flags.split()]) == 2
    error = capsys.readouterr().err
    assert "--stack_seeds=1 cannot go with" in error and named in error


def test_stacking_needs_seeds(capsys, tiny_flags):
    assert main([*tiny_flags, "--stack_seeds=1"]) == 2
    assert "--stack_seeds: has no effect in this run, it needs --seeds" in capsys.readouterr().err


def test_the_longest_stacked_sentence_is_the_longest_dense_one():
    assert LONGEST_STACKED == DENSE_TOKENS


def test_batch_norm_cannot_be_stacked():
    models = [SentenceModel(nn.Sequential(MeanPooler(4), nn.BatchNorm1d(4)), SingleHead(4, 2)) for _ in range(2)]
    with pytest.raises(ValueError, match="running_mean"):
        StackedModel(models)
