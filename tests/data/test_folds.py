"""Cross-validation: folds, the runs of the folds, and what joins them."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, matthews_corrcoef

import glot
from glot.cli import glot_main, main
from glot.data.folds import assign_folds
from glot.errors import CheckpointError, DataError
from glot.settings.flags import parse
from glot.types import Examples

UNSEEN = "pooler.score_layer.2.bias"
"""The softmax cancels it: its gradient is rounding, which Adam makes a step of."""


def run(capsys, words: list[str]) -> dict:
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def rows_with(labels: np.ndarray) -> Examples:
    return Examples("t", "pool", ([f"text {row}" for row in range(len(labels))],), labels)


def test_folds_share_every_class_and_every_range_of_scores():
    labels = np.repeat([0, 1, 2], [50, 23, 12])
    found = assign_folds(rows_with(labels), 5, 3, is_class=True)
    for label in range(3):
        counts = np.bincount(found[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (found == assign_folds(rows_with(labels), 5, 3, is_class=True)).all()
    assert (found != assign_folds(rows_with(labels), 5, 4, is_class=True)).any()
    scores = np.random.default_rng(0).uniform(0, 5, 103)
    found = assign_folds(rows_with(scores), 4, 0, is_class=False)
    assert all(abs(scores[found == fold].mean() - scores.mean()) < 0.3 for fold in range(4))
    assert set(assign_folds(rows_with(np.full(9, 2.0)), 3, 0, is_class=False)) == {0, 1, 2}
    with pytest.raises(DataError, match=r"--folds=5: a class has 4 rows"):
        assign_folds(rows_with(np.repeat([0, 1], [9, 4])), 5, 0, is_class=True)


def predictions(result: dict) -> list[dict[str, str]]:
    return list(csv.DictReader((Path(result["run_dir"]) / "predictions.csv").open()))


def test_every_row_is_predicted_by_the_model_that_did_not_see_it(capsys, tiny_flags, tmp_path):
    words = [*tiny_flags, "--pooling_method=adapool", "--epochs=2", "--lr=1e-2", "--folds=3", "--data_seed=4"]
    result = run(capsys, [*words, "--run_name=cv"])
    table = predictions(result)
    assert len(table) == 41 + 17 == result["rows"]["pool"] and len(list((tmp_path / "hidden").iterdir())) == 1
    labels, found = ([float(row[name]) for row in table] for name in ("label", "prediction"))
    assert result["best"]["metrics"]["accuracy"] == pytest.approx(accuracy_score(labels, found))
    assert result["best"]["metrics"]["mcc"] == pytest.approx(matthews_corrcoef(labels, found))
    held = [row["sentence"] for fold in range(3) for row in predictions({"run_dir": tmp_path / f"runs/cv/fold-{fold}"})]
    assert sorted(held) == sorted(row["sentence"] for row in table)
    again = shlex.split(result["made_by"]["command"])[1:]
    assert parse(again, "main.py").config.data.folds == 3 and parse(again, "main.py").config.data.fold is None  # of all folds, not of one
    alone = run(capsys, [*words, "--fold=1", "--run_name=alone"])
    own = {row["sentence"]: row["score_1"] for row in predictions(alone)}
    assert own == {row["sentence"]: row["score_1"] for row in predictions({"run_dir": tmp_path / "runs/cv/fold-1"})}
    assert {**alone["best"], "epochs": len(alone["history"])} == result["folds"][1]
    assert alone["rows"]["train"] == 58 - len(predictions(alone))
    with pytest.raises(CheckpointError, match=r"was cross-validated and has a model for each fold; give one, such as .*fold-0"):
        glot.load(result["run_dir"])
    assert glot.load(tmp_path / "runs/cv/fold-0").predict(["the red cat"])
    capsys.readouterr()
    assert main(["--task=mteb", "--mteb_task=BIOSSES", f"--checkpoint_path={result['run_dir']}", "--print_config"]) == 2  # before any work
    assert "give one, such as" in capsys.readouterr().err
    assert glot_main(["runs", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.count("runs/cv") == 1  # its folds are no rows of the table


def test_seeds_side_by_side_are_those_one_after_the_other_in_every_fold(capsys, tiny_flags, tmp_path):
    words = [*tiny_flags, "--pooling_method=adapool", "--epochs=2", "--lr=1e-2", "--folds=2", "--seeds=1,2", "--order_seed=7"]
    single = run(capsys, [*words, "--run_name=single"])
    stacked = run(capsys, [*words, "--run_name=stacked", "--stack_seeds=1"])
    assert single["runs"][0]["best"] != single["runs"][1]["best"] or predictions(single["runs"][0]) != predictions(single["runs"][1])
    for one, other in zip(single["runs"], stacked["runs"], strict=True):
        for fold in range(2):
            weights = [load_file(Path(result["run_dir"]) / f"fold-{fold}/model.safetensors") for result in (one, other)]
            assert all(np.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in set(weights[0]) - {UNSEEN})


def test_no_threshold_moves_a_ranking_metric_of_joined_folds(capsys, tiny_flags):
    words = [*tiny_flags, "--pooling_method=mean", "--epochs=2", "--folds=3", "--selection=heldout", "--heldout_fraction=0.3"]
    words += ["--data_seed=4", "--lr=1e-2"]
    plain, moved = run(capsys, words), run(capsys, [*words, "--threshold=heldout"])
    assert any(moved["threshold"])
    for metric in ("auroc", "average_precision"):
        assert moved["best"]["metrics"][metric] == pytest.approx(plain["best"]["metrics"][metric], abs=1e-6)


def test_rows_are_held_out_inside_the_training_part_of_a_fold(capsys, tiny_flags):
    words = [
        *tiny_flags,
        "--task=stsb",
        "--pooling_method=mean",
        "--head=probe",
        "--pair_features=full",
        "--folds=3",
        "--selection=heldout",
    ]
    result = run(capsys, words)
    assert len(predictions(result)) == 48 and set(result["best"]["metrics"]) == {"spearman", "pearson"}
    assert result["select_by"].startswith("in each of 3 folds: nothing to select: the head is fitted once")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--folds=1"], "--folds=1: must be 0, or at least 2"),
        (["--folds=3", "--eval_split=test"], "--folds=3: takes the task's own evaluation rows; leave out --eval_split"),
        (["--folds=3", "--fold=3"], "--fold=3: must be below --folds=3"),
        (["--fold=0"], "--fold: has no effect in this run, it needs --folds; leave it out"),
        (["--folds=30"], "--folds=30: a class has 28 rows, so not every fold can have one; use fewer folds"),
    ],
)
def test_folds_that_cannot_be_had_are_refused(capsys, tiny_flags, words, line):
    assert main([*tiny_flags, *words]) == 2
    assert line in capsys.readouterr().err


def test_generated_and_paired_data_have_no_folds(capsys, tiny_bert, tmp_path):
    assert main([f"--model_name_or_path={tiny_bert}", "--task=stress", "--folds=3", f"--output_dir={tmp_path}"]) == 2
    assert "--folds: has no effect in this run, it needs a task whose labelled rows are read from files" in capsys.readouterr().err
