"""Contrastive training through the command line: the run folder, the release's file, refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import WORDS, write_rows

from glot.cli import main
from glot.settings.choices import FIXED_POOLERS, PAIR_POOLERS, POOLERS
from glot.training.checkpoint import load_run

NAME = "embedding_{model}_glot_layers2_cat_lr0.01_bs8_ep2_len12_proj256_sample{rows}.pth"


@pytest.fixture
def flags(tiny_bert, tmp_path) -> list[str]:
    rows = [
        {"query": f"{one} {other}", "pos": [f"the {one} {other}"], "neg": [f"not {one}", f"a {other}"][: row % 3]}
        for row, (one, other) in enumerate((one, other) for one in WORDS[5:10] for other in WORDS[10:16])
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    words = f"--task=embedding --train_file={tmp_path}/pairs.jsonl --model_name_or_path={tiny_bert} --max_length=12 --verbose=0 --lr=1e-2"
    words += f" --epochs=2 --batch_size=8 --heldout_fraction=0.3 --output_dir={tmp_path}/runs --store_dir={tmp_path}/hidden"
    return [*words.split(), f"--save_dir={tmp_path}/saved", "--pooling_method=glot", "--gat_hidden_dim=8"]


def run(capsys, words: list[str]) -> dict:
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_run_and_the_file_that_the_release_could_read(capsys, flags, tmp_path, tiny_bert):
    result = run(capsys, flags)
    assert result["task"] == "embedding" and [entry["epoch"] for entry in result["history"]] == [1, 2]
    assert list(result["best"]["metrics"]) == ["mrr_at_10", "recall_at_1", "loss"] and result["rows"] == {"train": 21, "heldout": 9}
    assert "9 rows are held out of training and ranked after every epoch" in result["notes"]
    assert set(result["mean_untrained"]) == {"mrr_at_10", "recall_at_1", "loss"} and result["mean_untrained"] != result["best"]["metrics"]
    folder = Path(result["run_dir"])
    ranks = [int(line.split(",")[1]) for line in (folder / "predictions.csv").read_text().splitlines()[1:]]
    assert len(ranks) == 9 and result["best"]["metrics"]["recall_at_1"] == pytest.approx(ranks.count(1) / 9)
    model = str(tiny_bert).replace("/", "_")
    target = tmp_path / "saved" / NAME.format(model=model, rows="subset")
    assert result["checkpoint"] == str(target)
    state = torch.load(target, weights_only=True)
    expected = load_run(folder)[0].pooler.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)
    again = run(capsys, flags)  # the same configuration may replace its own file
    assert again["best"] == result["best"] and again["history"][1]["train_loss"] == result["history"][1]["train_loss"]
    assert main([*flags, "--tau=0.9", "--seed=1"]) == 2
    error = capsys.readouterr().err
    assert "was made with another tau (0.3 there), seed (42 there); move it away, or choose another --save_dir" in error
    shutil.move(target.with_name(target.name + ".json"), tmp_path / "elsewhere")
    assert main(flags) == 2 and "nothing says what made it" in capsys.readouterr().err
    assert run(capsys, [*flags, "--num_train_samples=20"])["checkpoint"].endswith("_sample20.pth")
    assert run(capsys, [*flags, "--num_train_samples=full", "--proj_dim=512"])["checkpoint"].endswith("_proj512_samplefull.pth")


def test_training_learns_and_every_knob_moves_the_result(capsys, flags, tmp_path):
    plain = [flag for flag in flags if "save_dir" not in flag]
    losses = {}
    for name, extra in {
        "plain": [],
        "temperature": ["--temperature=1"],
        "unit": ["--contrastive_normalize=1"],
        "negatives": ["--hard_negatives=2"],
        "seed": ["--seed=7"],
        "live": ["--precompute_hidden_states=0"],
    }.items():
        kept = [flag for flag in plain if name != "live" or "store_dir" not in flag]
        result = run(capsys, [*kept, *extra, "--epochs=6", f"--save_dir={tmp_path / name}"])
        losses[name] = [entry["train_loss"] for entry in result["history"]]
        assert losses[name][-1] < losses[name][0]
        if name == "negatives":
            assert any("rows have fewer than 2 negatives" in note for note in result["notes"])
    assert losses["live"] == pytest.approx(losses["plain"], rel=1e-2)
    rest = [values[-1] for name, values in losses.items() if name != "live"]
    assert len(set(rest)) == len(rest)


@pytest.mark.parametrize("pooler", [name for name in POOLERS if name not in (*FIXED_POOLERS, *PAIR_POOLERS)])
def test_every_pooler_with_weights_trains(capsys, flags, pooler):
    width = [] if pooler in ("glot", "mlp", "latent") else ["--gat_hidden_dim=8"]
    words = [flag for flag in flags if flag not in width and "pooling_method" not in flag]
    result = run(capsys, [*words, f"--pooling_method={pooler}"])
    assert result["pooler"] == pooler and result["trainable_params"] > 0


def test_what_is_refused_before_anything_slow(capsys, flags, tmp_path):
    plain = [flag for flag in flags if "pooling_method" not in flag and "gat_hidden" not in flag]
    for pooler in (*FIXED_POOLERS, *PAIR_POOLERS):
        assert main([*plain, f"--pooling_method={pooler}"]) == 2
        why = "scores pairs of texts, and --task=embedding has none" if pooler in PAIR_POOLERS else "has no weights, so there is nothing"
        assert f"--pooling_method={pooler}: {why}" in capsys.readouterr().err
    for extra, complaint in {
        "--train_file=/no/such.jsonl": "--train_file=/no/such.jsonl: no such file",
        "--temperature=0": "--temperature=0.0: must be between",
        "--batch_size=1": "--batch_size=1: a row is told apart from the others of its batch",
        "--eval_split=test": "--eval_split: has no effect in this run",
        "--distractor_ratio=0.5": "--distractor_ratio: has no effect in this run",
        f"--save_dir={tmp_path}/pairs.jsonl/x": "pairs.jsonl/x: cannot be written",
    }.items():
        assert main([*flags, extra]) == 2
        assert complaint in capsys.readouterr().err
    with (tmp_path / "pairs.jsonl").open("a") as stream:
        stream.write("{}\n")
    assert main(flags) == 2 and "line 31: pos must be a list of texts" in capsys.readouterr().err
    assert "1 malformed rows were skipped" in run(capsys, [*flags, "--skip_bad_rows=1"])["notes"]
    assert main(["--task=cola", "--hard_negatives=2"]) == 2 and "--hard_negatives: has no effect" in capsys.readouterr().err


def test_rows_that_cannot_be_told_apart_are_one_line(capsys, flags, tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [{"query": f"q{row}", "pos": ["the same"]} for row in range(20)])
    assert main(flags) == 2 and "one text stands in all 14 training rows" in capsys.readouterr().err
    assert not (tmp_path / "hidden").exists()  # said before anything is encoded
    triangle = [("red", "blue"), ("blue", "green"), ("green", "red")]  # every two rows share a text, and no text is in all
    write_rows(tmp_path / "pairs.jsonl", [{"query": one, "pos": [other]} for one, other in [*triangle, ("big", "small")]])
    outcomes = set()
    for seed in range(8):  # which query is held out depends on the data seed
        main([*flags, f"--data_seed={seed}", "--heldout_fraction=0.25", f"--save_dir={tmp_path}/s{seed}"])
        outcomes.add("an epoch without a batch" in capsys.readouterr().err)
    assert outcomes == {True, False}


def test_several_seeds_and_the_plan(capsys, flags, tmp_path):
    result = run(capsys, [*flags, "--seeds=0,1"])
    assert [entry["seed"] for entry in result["runs"]] == [0, 1] and result["summary"]["mrr_at_10"]["n"] == 2
    assert all(Path(entry["checkpoint"]).parent == Path(entry["run_dir"]) for entry in result["runs"])
    assert {entry["data_seed"] for entry in result["runs"]} == {42} and not (tmp_path / "saved").exists()
    assert main([*flags, "--dry_run"]) == 0 and "21 train, 9 heldout" in capsys.readouterr().out
    assert run(capsys, [*flags, "--estimate"])["sentences"] > 30


def test_the_learning_rate_falls_when_the_loss_does_not(capsys, flags, monkeypatch):
    from glot import recipes

    rates = []
    whole = recipes.fit

    def watched(model, batches, loss, optimizer, record, options, saver):
        assert options.schedule.patience == 50  # the release's
        options.schedule.patience = 1
        whole(model, batches, lambda output, labels: loss(output, labels) * 0 + 1, optimizer, record, options, saver)
        rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(recipes, "fit", watched)
    run(capsys, flags)
    assert rates[0] < 1e-3
