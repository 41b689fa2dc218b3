"""`glot cost`: its arms are ordinary runs, its table is what was measured, and a wrong command says so before anything slow."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from glot.cli import glot_main, main
from glot.errors import ConfigError
from glot.settings.config import RunConfig
from glot.states.backbone import find_backbone
from glot.study import cost, stopwatch
from glot.study.cost import Cost, Store
from glot.study.cost_arms import make_arms
from glot.study.stopwatch import PARTS, TimedBatches


@pytest.fixture
def pairs(tiny_bert, tmp_path) -> list[str]:
    """Flags of a small task of pairs: whether both texts name the same animal."""
    rows = [
        (f"the {a} cat", f"a {b} {animal}", int(animal == "cat"))
        for a in ("red", "big")
        for b in ("green", "small", "red")
        for animal in ("cat", "dog")
    ]
    with (tmp_path / "pairs.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("a", "b", "label"), *rows * 3])
    words = f"--task=custom --train_file={tmp_path}/pairs.csv --text_columns=a,b --label_column=label --model_name_or_path={tiny_bert}"
    words += (
        f" --store_dir={tmp_path}/hidden --output_dir={tmp_path}/runs --max_length=12 --batch_size=8 --gat_hidden_dim=4 --scorer_hidden=4"
    )
    return [*words.split(), "--num_layers=1", "--verbose=0"]


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as stream:
        table = list(csv.DictReader(stream))
    return {next(iter(row.values())): row for row in table}


@pytest.mark.slow  # a process for each arm
def test_the_table_of_arms_and_their_weights_as_runs_count_them(pairs, tmp_path, capsys):
    assert glot_main(["cost", *pairs, "--run_name=cost", "--arms=probe,glot,crossglot,lora"]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "runs/cost"
    table = rows_of(folder / "cost.csv")
    assert list(table) == ["probe", "glot", "crossglot", "lora"]
    for arm, flags in (("glot", ["--pooling_method=glot"]), ("lora", ["--pooling_method=mean", "--finetune_backbone=lora"])):
        unused = ("--scorer_hidden",) + (("--store_dir", "--gat_hidden_dim", "--num_layers") if arm == "lora" else ())
        assert main([word for word in pairs if not word.startswith(unused)] + flags + ["--epochs=1"]) == 0
        assert table[arm]["weights"] == f"{json.loads(capsys.readouterr().out)['trainable_params']:,}"
    probe = [word for word in pairs if not word.startswith(("--scorer_hidden", "--gat_hidden_dim", "--num_layers"))]
    assert main([*probe, "--pooling_method=mean", "--head=probe", "--pair_features=full"]) == 0
    assert table["probe"]["weights"] == f"{json.loads(capsys.readouterr().out)['trainable_params']:,}"
    record = json.loads((folder / "cost.json").read_text())
    for row in record["arms"]:
        frozen = row["arm"] not in ("lora", "full")
        assert (row["stored"] is not None) == (frozen and row["arm"] != "probe") and (row["fit"] is not None) == (row["arm"] == "probe")
        assert set(row["parts"]) == set(PARTS) and all(value >= 0 for value in row["parts"].values())
        assert (row["parts"]["layers"] > 0) == (row["arm"] in ("glot", "crossglot")) and row["parts"]["backbone"] > 0
    assert record["store"]["texts"] > 0 and "lora takes" in said and "cost.png" in said
    for name in ("cost.png", "cost.pdf", "cost.tex", "cost.md", "inference.csv"):
        assert (folder / name).stat().st_size > 100
    assert "\\toprule" in (folder / "cost.tex").read_text() and (folder / "cost.md").read_text().strip() in said


def test_a_measuring_process_that_is_killed_is_named(pairs, capsys, monkeypatch):
    monkeypatch.setattr(stopwatch, "_peak_of", die)
    assert glot_main(["cost", *pairs, "--arms=mean"]) == 2
    assert "--arms=mean: the process that measures its memory was killed" in capsys.readouterr().err


def die(*_: object) -> None:
    """In the process that measures."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_scored_comparison_is_found_again(pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cost, "training_peak", lambda config, steps: 1 << 20)  # measured in the test above
    words = ["cost", *pairs, "--run_name=cost", "--arms=adapool,lora", "--quality=1", "--seeds=0,1", "--epochs=2", "--heldout_fraction=0.3"]
    assert glot_main(words) == 0
    first = json.loads((tmp_path / "runs/cost/cost.json").read_text())["quality"]
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/cost/runs").glob("*/result.json")}
    assert len(runs) == 2 * (3 + 2)  # three rates with the tuning seed, then two seeds
    assert [row["arm"] for row in first] == ["adapool", "lora"] and set(first[1]["tuned"]) == {"backbone_lr"}
    assert all(len(row["epochs"]) == 2 and row["spread"]["n"] == 2 for row in first)
    assert "accuracy, 2 seeds" in capsys.readouterr().out
    assert glot_main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in runs} == runs and len(list((tmp_path / "runs/cost/runs").glob("*/result.json"))) == 10
    assert json.loads((tmp_path / "runs/cost/cost.json").read_text())["quality"] == first


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--task=cola --arms=glott", "--arms=glott: unknown (did you mean 'glot'?)"),
        ("--task=cola --arms=mean,mean", "--arms=mean,mean: mean is named twice"),
        (
            "--task=cola --arms=mean,crossglot",
            "--arms=crossglot: --pooling_method=crossglot: scores pairs of texts, and --task=cola has none",
        ),
        ("--task=stsb --arms=probe --pair_features=concat", "--arms=probe: --head=probe: scores of pairs need --pair_features=full"),
        ("--task=cola --pooling_method=mean", "--pooling_method: the arms say it; name them with --arms"),
        ("--task=cola --finetune_backbone=lora", "--finetune_backbone: the arms say it"),
        ("--task=cola --arms=mean --lora_r=4", "--lora_r: has no effect in any of these arms; leave it out"),
        ("--task=cola --seeds=0,1", "--seeds: has no effect without --quality=1; leave it out"),
        ("--task=mteb", "--task=mteb: trains nothing; name a task that trains"),
        ("--task=cola --epochs=3", "--epochs: has no effect without --quality=1; leave it out"),
        ("--task=cola --folds=3", "--folds: has no effect here: costs are those of one training"),
        ("--task=cola --dry_run=1", "--dry_run: has no effect here: costs are measured"),
        ("--task=cola --quality=2", "argument --quality: invalid choice: '2'"),
        ("--task=cola --arms=lora --backbone_dtype=bfloat16", "--arms=lora: --backbone_dtype=bfloat16: would round small updates away"),
        ("--task=cola --print_config", "--print_config: is for one run; glot cost has several"),
    ],
)
def test_mistakes(words, problem, capsys):
    assert glot_main(["cost", *words.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith((problem, f"error: {problem}")) for line in lines), lines


def test_default_arms_are_those_that_the_task_can_have():
    def names(**values) -> list[str]:
        return [arm.name for arm in make_arms(RunConfig().with_values(**values), frozenset(values), None, False)]

    assert names(task="cola") == ["mean", "probe", "adapool", "glot", "lora", "full"]
    assert names(task="stsb") == ["mean", "probe", "adapool", "glot", "crossglot", "lora", "full"]
    assert "probe" not in names(task="stsb", pair_features="concat")
    with pytest.raises(ConfigError, match="backbone_dtype=float16"):
        names(task="cola", backbone_dtype="float16")


def test_flags_of_the_command_count_before_those_of_an_arm():
    base = RunConfig().with_values(task="cola", warmup_ratio=0.3, seeds="0")
    (arm,) = make_arms(base, frozenset({"task", "warmup_ratio", "seeds"}), "lora", True)
    train = arm.config.train
    assert (train.warmup_ratio, train.optimizer, train.early_stop, arm.config.data.selection) == (0.3, "adamw", 2, "heldout")


@pytest.mark.parametrize(("encode", "stored", "other"), [(10.0, 0.1, 1.0), (9.0, 0.1, 1.0), (0.5, 0.1, 5.0), (3.0, 2.0, 1.0)])
def test_break_even_is_the_first_epoch_at_which_storing_has_cost_no_more(encode, stored, other):
    row, store = Cost("mean", 1, 1, stored, other, None, 0, dict.fromkeys(PARTS, 0.0), 0), Store(encode, 0, 0, 0)
    found = next((epochs for epochs in range(1, 1000) if encode + epochs * stored <= epochs * other + 1e-9), None)
    assert row.break_even(store, other) == found


def test_batches_go_on_from_epoch_to_epoch():
    timed = TimedBatches([1, 2, 3], torch.device("cpu"))
    assert list(timed.take(2)) + list(timed.take(3)) == [1, 2, 3, 1, 2] and len(timed.seconds) == 5


def test_the_peak_is_above_what_was_there_before_and_forgotten_when_asked():
    stopwatch._forget_peak()
    before = stopwatch._memory("VmHWM")
    block = torch.ones(64 << 18)  # 64 MiB
    peak = stopwatch._memory("VmHWM")
    del block
    stopwatch._forget_peak()
    assert 60 << 20 < peak - before < 80 << 20 and stopwatch._memory("VmHWM") < peak - (50 << 20)


def test_default_arms_that_the_rows_cannot_have_are_left_out_before_anything_is_measured(pairs, tmp_path, capsys, monkeypatch):
    with (tmp_path / "pairs.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("a", "b", "label"), *((f"the cat {n}", f"a dog {n}", n / 7) for n in range(20))])
    monkeypatch.setattr(cost, "measure", lambda arms: pytest.fail(",".join(arm.name for arm in arms)))
    with pytest.raises(pytest.fail.Exception, match=r"^mean,adapool,glot,crossglot,lora,full$"):
        glot_main(["cost", *pairs, "--pair_features=concat"])
    assert "left out, arms=probe: --head=probe: scores of pairs need --pair_features=full" in capsys.readouterr().err
    assert glot_main(["cost", *pairs, "--pair_features=concat", "--arms=mean,probe"]) == 2
    assert "--arms=probe: --head=probe: scores of pairs" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("cost*"))
    assert glot_main(["cost", *pairs[1:], "--task=custom", "--train_file=/no/such.csv"]) == 2
    assert len([line for line in capsys.readouterr().err.splitlines() if "no such file" in line]) == 1


def test_one_precision_for_all_arms_and_rates_that_were_given(monkeypatch, tiny_bert, pairs):
    monkeypatch.setattr(cost, "pick_dtype", lambda source, device, is_trained: ("autocast" if is_trained else "bfloat16", "picked"))
    config = RunConfig().with_values(task="cola", backbone_dtype="auto", model_name_or_path=str(tiny_bert))
    monkeypatch.setattr(cost, "read_texts", lambda *_: None)
    for names, dtype in (("mean,lora", "autocast"), ("mean,glot", "bfloat16")):
        arms = make_arms(config, frozenset({"backbone_dtype"}), names, False)
        assert {arm.config.backbone.backbone_dtype for arm in cost.settle_arms(arms, find_backbone(str(tiny_bert)), False)} == {dtype}
    (arm,) = make_arms(config.with_values(selection="last", seeds="0"), frozenset({"selection", "seeds"}), "mean", True)
    assert arm.config.data.selection == "last"
