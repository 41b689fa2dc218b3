"""Fitted heads, thresholds, schedules and early stops: against scikit-learn, transformers and naive loops, and through whole runs."""

import csv
import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import average_precision_score, f1_score, matthews_corrcoef
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from transformers import get_scheduler

import glot
from glot.cli import main
from glot.nn.heads import FittedHead, PairHead, ScoreHead, join_pair
from glot.training import linear_heads
from glot.training.linear_heads import PENALTIES, best_threshold, fit_head
from glot.training.metrics import METRICS
from glot.training.optimizer import OPTIMIZERS, SHAPES, StepSchedule, learning_rate_factor


def run(capsys, words: list[str]) -> dict:
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def fail(capsys, words: list[str]) -> list[str]:
    assert main(words) == 2
    return capsys.readouterr().err.splitlines()


def drawn(classes: int, rows: int = 120, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(rows, width)).astype(np.float32) * 3 + 1
    labels = (features[:, :classes] + generator.normal(size=(rows, classes))).argmax(1)
    features[:, -1] = 2.5  # a feature that never changes
    return features, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_is_scikit_learns_logistic_regression_on_standardised_features(classes):
    features, labels = drawn(classes)
    head = FittedHead(5, sides=1, num_labels=classes)
    chosen = fit_head(head, "probe", features, labels, seed=0)["C"]
    expected = make_pipeline(StandardScaler(), LogisticRegression(C=chosen, max_iter=1000)).fit(features, labels)
    found = head(torch.from_numpy(features)).softmax(1).detach().numpy()
    np.testing.assert_allclose(found, expected.predict_proba(features), atol=1e-3)
    again = FittedHead(5, sides=1, num_labels=classes)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(torch.from_numpy(features)), head(torch.from_numpy(features)))


def test_a_support_vector_machine_is_scikit_learns():
    features, labels = drawn(2)
    head = FittedHead(5, sides=1, num_labels=2)
    chosen = fit_head(head, "svm", features, labels, seed=0)["C"]
    expected = make_pipeline(StandardScaler(), LinearSVC(C=chosen, max_iter=5000, dual="auto", random_state=0)).fit(features, labels)
    found = head(torch.from_numpy(features)).detach().numpy()
    np.testing.assert_allclose(found[:, 1] - found[:, 0], expected.decision_function(features), atol=1e-2)


def test_fits_that_stop_at_their_limit_are_counted(monkeypatch, caplog):
    features, labels = drawn(2)
    found = [fit_head(FittedHead(5, sides=1, num_labels=2), "svm", features, labels, seed=0)]
    monkeypatch.setattr(linear_heads, "MOST_STEPS", 1)
    found.append(fit_head(FittedHead(5, sides=1, num_labels=2), "svm", features, labels, seed=0))
    assert "unfinished_fits" not in found[0] and found[1]["unfinished_fits"] > 0
    assert f"LinearSVC: {found[1]['unfinished_fits']} of its fits did not converge in 1 steps" in caplog.text


def test_a_probe_of_scores_is_ridge_regression():
    features, _ = drawn(2, width=4 * 2 + 1)
    labels = (features @ np.arange(9) + 1).astype(np.float32)
    head = FittedHead(2, sides=2, num_labels=1, pair_features="full")
    assert fit_head(head, "probe", features, labels, seed=0)["alpha"] in PENALTIES
    expected = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(features, labels)
    rows = (torch.from_numpy(features) - head.mean) / head.scale
    np.testing.assert_allclose(head.linear(rows).squeeze(1).detach(), expected.predict(features), atol=1e-2)


def test_full_features_against_a_loop():
    u, v = torch.randn(4, 3), torch.randn(4, 3)
    joined = join_pair(u, v, "full")
    for row in range(4):
        a, b = u[row].tolist(), v[row].tolist()
        cosine = sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) ** 0.5 * sum(y * y for y in b) ** 0.5)
        parts = [*a, *b, *(abs(x - y) for x, y in zip(a, b, strict=True)), *(x * y for x, y in zip(a, b, strict=True)), cosine]
        assert joined[row].tolist() == pytest.approx(parts, abs=1e-6)
    assert torch.equal(join_pair(u, v, "concat"), torch.cat([u, v], 1))
    head, scores = PairHead(3, 2, "full"), ScoreHead(3)
    torch.testing.assert_close(head(u, v), joined @ head.linear.weight.T + head.linear.bias)
    assert scores(u, v).shape == (4,)
    dropping = PairHead(3, 2, dropout=0.9).train()
    assert not torch.equal(dropping(u, v), dropping(u, v)) and torch.equal(dropping.eval()(u, v), dropping(u, v))


@pytest.mark.parametrize("metric", ["mcc", "f1", "macro_f1", "accuracy"])
def test_a_threshold_is_the_best_of_all_that_tell_rows_apart(metric):
    generator = np.random.default_rng(1)
    outputs = generator.normal(size=(60, 2)).round(1)
    labels = (outputs[:, 1] - outputs[:, 0] + generator.normal(size=60) > 0.7).astype(int)
    found = best_threshold(outputs, labels, metric)
    margins = outputs[:, 1] - outputs[:, 0]
    macro = partial(f1_score, average="macro")
    score = {"mcc": matthews_corrcoef, "f1": f1_score, "macro_f1": macro, "accuracy": lambda y, p: float((y == p).mean())}[metric]
    assert score(labels, margins > found) == pytest.approx(max(score(labels, margins > cut) for cut in np.arange(-4, 4, 0.01)))
    assert best_threshold(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1, 0]), "accuracy") == 0  # nothing to gain
    low = best_threshold(np.stack([np.zeros(5), [-2, -1.5, -1, -0.5, 0.2]], 1), np.array([1, 0, 1, 1, 1]), "f1")
    assert low < -2  # every row as the second class: F1 0.889, and 0.857 at best between two margins


def test_average_precision_against_a_loop():
    labels, margins = np.array([1, 0, 1, 1, 0]), np.array([0.9, 0.8, 0.7, 0.2, 0.1])
    outputs = np.stack([np.zeros(5), margins], 1)
    hits = [sum(labels[: place + 1]) / (place + 1) for place in range(5) if labels[place]]
    assert METRICS["average_precision"](labels, outputs) == pytest.approx(sum(hits) / 3) == average_precision_score(labels, margins)
    assert np.isnan(METRICS["average_precision"](np.zeros(5), outputs))


@pytest.mark.parametrize(("shape", "warmup"), itertools.product(["constant", "linear", "cosine"], [0, 4]))
def test_schedules_are_those_of_transformers(shape, warmup):
    rates = []
    for build in (
        lambda optimizer: StepSchedule(optimizer, lambda step: learning_rate_factor(step, 20, warmup, SHAPES[shape])),
        lambda optimizer: get_scheduler(f"{shape}_with_warmup" if shape == "constant" else shape, optimizer, warmup, 20),
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        schedule = build(optimizer)
        rates.append([])
        for _ in range(20):
            rates[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    assert rates[0] == pytest.approx(rates[1])


def margins_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    margins = np.array([float(row["score_1"]) - float(row["score_0"]) for row in rows])
    return margins, np.array([int(float(row["prediction"])) for row in rows])


def test_a_probe_on_a_fixed_pooler_takes_no_step_and_serves_predict(capsys, tiny_flags):
    words = [*tiny_flags, "--pooling_method=mean", "--head=probe", "--selection=heldout", "--heldout_fraction=0.3", "--threshold=heldout"]
    assert main([*words, "--epochs=3", "--lr=1"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err.splitlines()[0] == "no effect in this run: --epochs, --lr"
    assert result["history"] == [] and result["trained_head"] is None and result["best"]["epoch"] == 0
    assert result["probe"]["C"] > 0 and result["trainable_params"] == 2 * 16 + 2
    folder = Path(result["run_dir"])
    margins, predicted = margins_of(folder)
    assert ((margins > 0) == predicted).all()
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    assert glot.load(folder).predict([row["sentence"] for row in rows]) == [row["prediction_name"] for row in rows]
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == {"head.mean", "head.scale", "head.linear.weight", "head.linear.bias"}


def test_a_probe_follows_the_trained_head_and_both_are_reported(capsys, tiny_flags):
    words = [*tiny_flags, "--pooling_method=adapool", "--epochs=3", "--lr=1e-2", "--store_dtype=float32"]
    trained, probed = run(capsys, words), run(capsys, [*words, "--head=probe"])
    assert (
        probed["trained_head"] == trained["best"]["metrics"] and probed["history"][-1]["train_loss"] == trained["history"][-1]["train_loss"]
    )
    one, other = (load_file(Path(result["run_dir"]) / "model.safetensors") for result in (trained, probed))
    assert all(torch.equal(one[name], other[name]) for name in one if name.startswith("pooler."))
    stacked = run(capsys, [*words, "--head=probe", "--seeds=42,43", "--stack_seeds=1"])
    assert stacked["runs"][0]["best"]["metrics"] == pytest.approx(probed["best"]["metrics"], abs=0.07)
    assert set(stacked["runs"][0]["trained_head"]) == set(probed["trained_head"])


def test_scores_of_pairs_by_a_probe_and_by_a_linear_layer_on_full_features(capsys, tiny_flags):
    flags = [*tiny_flags, "--task=stsb", "--pooling_method=mean"]
    probed = run(capsys, [*flags, "--head=probe", "--pair_features=full"])
    assert probed["probe"]["alpha"] > 0 and set(probed["best"]["metrics"]) == {"spearman", "pearson"}
    trained = run(capsys, [*flags, "--pair_features=full", "--label_scale=raw", "--lr=1e-1", "--epochs=40"])
    assert trained["trainable_params"] == 4 * 16 + 2
    rows = list(csv.DictReader((Path(trained["run_dir"]) / "predictions.csv").open()))
    assert 1 < np.mean([float(row["prediction"]) for row in rows]) < 4  # in the scale of the labels, 0 to 5
    found = glot.load(trained["run_dir"]).predict([(rows[0]["sentence1"], rows[0]["sentence2"])])
    assert found == pytest.approx([float(rows[0]["prediction"])], abs=1e-4)


def test_training_stops_early_at_the_best_epoch_alone_and_in_a_stack(capsys, tiny_flags):
    words = [*tiny_flags, "--pooling_method=adapool", "--epochs=30", "--lr=5e-2", "--selection=heldout", "--heldout_fraction=0.3"]
    words.append("--data_seed=1")
    stopped = run(capsys, [*words, "--early_stop=2", "--seed=5"])
    epochs, best = len(stopped["history"]), stopped["best"]["epoch"]
    assert epochs == best + 2 < 30
    whole = run(capsys, [*words, f"--epochs={epochs}", "--seed=5"])
    assert stopped["best"] == whole["best"] and [one["metrics"] for one in stopped["history"]] == [
        one["metrics"] for one in whole["history"]
    ]
    stacked = run(capsys, [*words, "--early_stop=2", "--seeds=5..8", "--stack_seeds=1"])
    lengths = [(len(one["history"]), one["best"]["epoch"]) for one in stacked["runs"]]
    assert lengths[0] == (epochs, best) and all(length in (last + 2, 30) for length, last in lengths)


def test_gradients_are_clipped_and_the_learning_rate_follows_its_schedule(capsys, tiny_flags, monkeypatch):
    norms, rates, whole = [], [], OPTIMIZERS["adamw"].step

    def watched(self, *arguments, **options):
        gradients = [weight.grad.norm() for group in self.param_groups for weight in group["params"]]
        norms.append(float(torch.stack(gradients).norm()))
        rates.append(self.param_groups[0]["lr"])
        return whole(self, *arguments, **options)

    monkeypatch.setattr(OPTIMIZERS["adamw"], "step", watched)
    words = [*tiny_flags, "--pooling_method=adapool", "--optimizer=adamw", "--grad_clip=0.01", "--epochs=5", "--lr=1e-2"]
    run(capsys, [*words, "--lr_schedule=cosine", "--warmup_ratio=0.2"])
    assert len(norms) == 10 and max(norms) <= 0.0101
    assert rates == pytest.approx([learning_rate_factor(step, 10, 2, SHAPES["cosine"]) * 1e-2 for step in range(10)])
    del norms[:], rates[:]
    run(capsys, [*words, "--grad_clip=0", "--lr_schedule=linear"])
    assert max(norms) > 0.0101 and rates == pytest.approx([1e-2 * (10 - step) / 10 for step in range(10)])


def test_the_heads_flags_reach_the_head(capsys, tiny_flags):
    words = [*tiny_flags, "--task=mrpc", "--pooling_method=mean", "--epochs=1"]
    plain, dropped, full = (run(capsys, [*words, *more]) for more in ([], ["--dropout=0.5"], ["--pair_features=full"]))
    assert plain["history"][0]["train_loss"] != dropped["history"][0]["train_loss"]
    assert plain["trainable_params"] == dropped["trainable_params"] == 2 * (2 * 16 + 1)
    assert full["trainable_params"] == 2 * (4 * 16 + 2)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--threshold=heldout"], "--threshold=heldout: needs rows that are held out; add --selection=heldout"),
        (
            ["--task=mnli", "--threshold=heldout", "--selection=heldout"],
            "--threshold=heldout: is for two classes, and the task has 3; use argmax",
        ),
        (["--task=stsb", "--head=svm", "--pair_features=full"], "--head=svm: takes classes, and the task has scores; use probe"),
        (
            ["--task=stsb", "--head=probe"],
            "scores of pairs need --pair_features=full or cosine; a sum over both vectors cannot compare them",
        ),
        (["--pair_features=full"], "--pair_features: has no effect in this run, it needs a task of pairs"),
        (["--early_stop=2", "--selection=last"], "--early_stop=2: stops by rows that are held out of training; add --selection=heldout"),
        (["--early_stop=2"], "--early_stop=2: stops by rows that are held out of training; add --selection=heldout"),
        (
            ["--head=probe", "--pooling_method=mean", "--early_stop=2"],
            "--early_stop: has no effect in this run, it needs a task that trains, with",
        ),
        (
            ["--seeds=0,1", "--stack_seeds=1", "--dropout=0.1"],
            "--stack_seeds=1 cannot go with --dropout: each run drops others; leave it out",
        ),
        (
            ["--seeds=0,1", "--stack_seeds=1", "--head=probe", "--pooling_method=mean"],
            "--stack_seeds=1 cannot go with --head=probe: a solver fits it, and mean has no weights; leave it out",
        ),
        (["--warmup_ratio=0.1", "--batch_size=500", "--epochs=1"], "--warmup_ratio=0.1: the only step would have rate 0; add epochs"),
        (["--head=probe", "--num_train_samples=4"], "--head=probe: class 'unacceptable' has 2 training rows, and 3 are needed to choose"),
        (["--head=svm", "--folds=2", "--num_train_samples=6", "--num_eval_samples=2"], "in fold 1, and 3 are needed to choose"),
        (["--head=forest"], "--head=forest: unknown; allowed: trained, probe, svm"),
    ],
)
def test_what_cannot_be_had_is_refused(capsys, tiny_flags, words, line):
    (found,) = fail(capsys, [*tiny_flags, *words])
    assert line in found
