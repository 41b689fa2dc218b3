"""Whole runs on tiny backbones: every task kind, every pooler, every selection, and what must be equal is equal."""

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import write_rows
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score, matthews_corrcoef
from transformers import AutoModel, AutoTokenizer

from glot.cli import demo_main, glot_main, main, stress_main
from glot.data.stress import needle_tokens
from glot.states.backbone import model as backbone_model
from glot.states.store import writer
from glot.states.tokens import padded_tokens
from glot.training import splits
from glot.training.checkpoint import load_run

ROOT = Path(__file__).parents[1]


def run(capsys, flags: list[str], command=main) -> dict:
    """The result object that a command prints last."""
    code = command(flags)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def fail(capsys, flags: list[str], command=main) -> list[str]:
    """The lines of a refused command."""
    code = command(flags)
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    return captured.err.splitlines()


@pytest.mark.parametrize("pooler", ["cls", "mean", "max", "adapool", "mlp", "glot"])
def test_a_run_and_its_folder(capsys, tiny_flags, pooler):
    result = run(capsys, [*tiny_flags, f"--pooling_method={pooler}", "--lr=1e-2", "--epochs=3"])
    folder = Path(result["run_dir"])
    assert json.loads((folder / "result.json").read_text()) == result
    assert {"config.json", "metrics.jsonl", "model.safetensors", "predictions.csv", "result.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert [entry["epoch"] for entry in result["history"]] == [1, 2, 3] and result["last"]["metrics"] == result["history"][-1]["metrics"]
    best = max(result["history"], key=lambda entry: entry["metrics"]["accuracy"])
    assert result["best"] == {"epoch": best["epoch"], "metrics": best["metrics"]}
    assert result["select_by"] == "best epoch by accuracy on the reported split (validation)"
    assert set(result["seconds"]) == {"load", "encode", "train", "evaluate"} and result["seed"] == 42
    model, config, _ = load_run(folder)
    assert model.trainable_params == result["trainable_params"] and config.pooler.pooling_method == pooler
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    labels, predictions = [float(row["label"]) for row in rows], [float(row["prediction"]) for row in rows]
    assert len(rows) == 17 and [row["row"] for row in rows] == [str(index) for index in range(17)]
    assert result["best"]["metrics"]["accuracy"] == accuracy_score(labels, predictions)
    assert result["best"]["metrics"]["mcc"] == pytest.approx(matthews_corrcoef(labels, predictions))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["metrics/acc"] for line in lines if "metrics/acc" in line] == [entry["metrics"]["accuracy"] for entry in result["history"]]


def comparable(result: dict) -> dict:
    """A result without what may differ between equal runs: seconds, date and names."""
    kept = {
        name: value
        for name, value in result.items()
        if name not in ("seconds", "run_dir", "history", "store", "files", "checksum", "made_by")
    }
    return kept | {"history": [{**entry, "seconds": None} for entry in result["history"]]}


def test_same_seed_same_bits_cold_or_warm(capsys, tiny_flags):
    flags = [*tiny_flags, "--pooling_method=glot"]
    cold, warm = run(capsys, flags), run(capsys, flags)
    workers = run(capsys, [*flags, "--num_workers=1"])
    rebuilt = run(capsys, [*flags, "--override_precompute=1"])
    other = run(capsys, [*flags, "--seed=1"])
    weights = [load_file(Path(result["run_dir"]) / "model.safetensors") for result in (cold, warm, workers, rebuilt, other)]
    for equal, result in zip(weights[1:4], (warm, workers, rebuilt), strict=True):
        assert all(torch.equal(weights[0][name], equal[name]) for name in weights[0])
        assert comparable(result) | {"fingerprint": 0} == comparable(cold) | {"fingerprint": 0}
    assert not torch.equal(weights[0]["head.linear.weight"], weights[4]["head.linear.weight"])
    assert cold["store"]["path"] == other["store"]["path"] and cold["fingerprint"] != other["fingerprint"]
    assert cold["run_dir"] != warm["run_dir"] and warm["run_dir"].endswith("-2")


def test_one_store_serves_poolers_but_not_other_lengths(capsys, tiny_flags):
    mean = run(capsys, [*tiny_flags, "--pooling_method=mean"])
    adapool = run(capsys, [*tiny_flags, "--pooling_method=adapool"])
    shorter = run(capsys, [*tiny_flags, "--max_length=4"])
    layer = run(capsys, [*tiny_flags, "--hidden_layer=0"])
    coarse = run(capsys, [*tiny_flags, "--backbone_dtype=bfloat16"])
    mixed = run(capsys, [*tiny_flags, "--backbone_dtype=autocast"])
    spread = run(capsys, [*tiny_flags, "--device=spread", "--override_precompute=1"])  # on this machine: all on the CPU
    assert spread["history"][0]["train_loss"] == run(capsys, tiny_flags)["history"][0]["train_loss"]
    paths = [result["store"]["path"] for result in (mean, adapool, shorter, layer, coarse, mixed)]
    assert paths[0] == paths[1] and len(set(paths)) == 5
    assert coarse["history"][0]["train_loss"] != run(capsys, tiny_flags)["history"][0]["train_loss"]
    assert mean["store"]["sentences"] == 30  # distinct texts of 58 rows
    assert mean["store"]["bytes"] == mean["store"]["tokens"] * 16 * 2


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_llama"])
@pytest.mark.parametrize("pooler", ["mean", "glot"])
def test_states_on_the_fly_train_like_stored_ones(capsys, tiny_flags, model, pooler, request):
    flags = [*tiny_flags, f"--model_name_or_path={request.getfixturevalue(model)}", f"--pooling_method={pooler}", "--lr=1e-3"]
    stored = run(capsys, [*flags, "--store_dtype=float32"])
    live = run(capsys, [*[flag for flag in flags if "store_dir" not in flag], "--precompute_hidden_states=0"])
    assert live["store"] is None
    for one, other in zip(stored["history"], live["history"], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert one["metrics"] == other["metrics"]


def test_cls_of_a_decoder_is_its_last_token_on_request(capsys, tiny_flags, tiny_llama, tiny_bert):
    flags = [*tiny_flags, "--pooling_method=cls", f"--model_name_or_path={tiny_llama}"]
    first, last = run(capsys, flags), run(capsys, [*flags, "--decoder_cls_last_token=1"])
    assert comparable(first)["history"] != comparable(last)["history"]
    assert load_run(Path(last["run_dir"]))[0].pooler.last
    encoder = run(capsys, [*tiny_flags, "--pooling_method=cls", "--decoder_cls_last_token=1"])
    assert encoder["notes"][0].endswith("is an encoder: cls takes its first token whatever --decoder_cls_last_token says")


def test_similarity_pairs_both_mnli_splits_and_imdb(capsys, tiny_flags):
    stsb = run(capsys, [*tiny_flags, "--task=stsb", "--lr=1e-3"])
    assert set(stsb["best"]["metrics"]) == {"spearman", "pearson"}
    scaled = run(capsys, [*tiny_flags, "--task=stsb", "--lr=1e-3", "--label_scale=-1_1"])
    assert stsb["history"][0]["train_loss"] != scaled["history"][0]["train_loss"]
    both = run(capsys, [*tiny_flags, "--task=mnli"])
    assert set(both["best"]["metrics"]) == set(both["floor"]) == {"accuracy", "accuracy_mm"}
    one = run(capsys, [*tiny_flags, "--task=mnli", "--eval_split=validation_mismatched"])
    assert set(one["best"]["metrics"]) == {"accuracy"} and "validation_mismatched" in one["select_by"]
    assert set(run(capsys, [*tiny_flags, "--task=mrpc"])["best"]["metrics"]) == {"f1", "accuracy", "auroc", "average_precision"}
    assert set(run(capsys, [*tiny_flags, "--task=imdb"])["best"]["metrics"]) == {"accuracy", "mcc", "auroc", "average_precision"}


def test_selections(capsys, tiny_flags):
    flags = [*tiny_flags, "--pooling_method=adapool", "--lr=3e-2", "--epochs=4", "--store_dtype=float32"]
    best, last = run(capsys, flags), run(capsys, [*flags, "--selection=last"])
    assert last["best"]["metrics"] == last["last"]["metrics"] == best["last"]["metrics"] and last["select_by"] == "last epoch"
    held = run(capsys, [*flags, "--selection=heldout", "--heldout_fraction=0.3", "--data_seed=5"])
    assert held["last"] is None and "held out with data seed 5" in held["select_by"] and "mcc" in held["select_by"]
    assert len(list(csv.DictReader((Path(held["run_dir"]) / "predictions.csv").open()))) == 17
    other = run(capsys, [*flags, "--selection=heldout", "--heldout_fraction=0.3", "--data_seed=6"])
    assert comparable(held)["history"] != comparable(other)["history"]


def test_the_saved_model_is_that_of_the_selected_epoch(capsys, tiny_flags):
    flags = [*tiny_flags, "--pooling_method=adapool", "--lr=5e-2", "--epochs=5"]
    result = run(capsys, flags)
    stopped = run(capsys, [*flags, f"--epochs={result['best']['epoch']}", "--selection=last"])
    saved, expected = (load_file(Path(one["run_dir"]) / "model.safetensors") for one in (result, stopped))
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_several_seeds(capsys, tiny_flags):
    result = run(capsys, [*tiny_flags, "--pooling_method=adapool", "--seeds=0..2", "--run_name=three"])
    values = [entry["best"]["metrics"]["mcc"] for entry in result["runs"]]
    assert result["summary"]["mcc"] == pytest.approx({"mean": np.mean(values), "sd": np.std(values, ddof=1), "n": 3})
    assert [Path(entry["run_dir"]).name for entry in result["runs"]] == ["seed-0", "seed-1", "seed-2"]
    assert json.loads((Path(result["run_dir"]) / "result.json").read_text()) == result
    single = run(capsys, [*tiny_flags, "--pooling_method=adapool", "--seed=1"])
    assert single["history"][0]["train_loss"] == result["runs"][1]["history"][0]["train_loss"]


def test_seeds_share_one_store_whatever_the_data_seed_and_build_it_anew_once(capsys, tiny_flags, monkeypatch):
    writes = []
    whole = writer._write_chunks
    monkeypatch.setattr(writer, "_write_chunks", lambda *args: writes.append(1) or whole(*args))
    run(capsys, [*tiny_flags, "--seeds=0..2", "--selection=heldout", "--heldout_fraction=0.3"])
    run(capsys, [*tiny_flags, "--seeds=0..2", "--override_precompute=1"])
    assert len(writes) == 2
    flags = [flag for flag in tiny_flags if "data_dir" not in flag and "--task" not in flag]
    stress = run(capsys, [*flags, "--max_length=30", "--num_train_samples=20", "--num_eval_samples=10", "--seeds=0..2"], stress_main)
    assert len(writes) == 3 and {entry["data_seed"] for entry in stress["runs"]} == {42}


def test_finetuning_moves_and_saves_the_backbone(capsys, tiny_flags, tiny_bert):
    flags = [flag for flag in tiny_flags if "store_dir" not in flag]
    result = run(capsys, [*flags, "--pooling_method=mean", "--finetune_backbone=1", "--backbone_lr=1e-2", "--epochs=1"])
    folder = Path(result["run_dir"]) / "backbone"
    before, after = AutoModel.from_pretrained(tiny_bert).state_dict(), AutoModel.from_pretrained(folder).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("attention" in name for name in moved) and any("embeddings" in name for name in moved)
    assert AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"] == AutoTokenizer.from_pretrained(tiny_bert)("the cat")["input_ids"]
    frozen = run(capsys, [*flags, "--pooling_method=mean", "--finetune_backbone=1", "--backbone_lr=0", "--epochs=1"])
    still = AutoModel.from_pretrained(Path(frozen["run_dir"]) / "backbone").state_dict()
    assert all(torch.equal(before[name], still[name]) for name in before)
    again = [flag for flag in tiny_flags if "model_name" not in flag]
    assert run(capsys, [*again, f"--model_name_or_path={folder}"])["best"]["epoch"] >= 1


def test_the_graph_of_a_run_is_that_of_the_backbone_as_it_is(capsys, tiny_flags):
    words = [word for word in tiny_flags if "store_dir" not in word]
    tables = []
    for own in ("--precompute_hidden_states=0", "--finetune_backbone=full", "--finetune_backbone=lora"):
        assert glot_main(["graph", *words, own, "--overwrite=1"]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] == tables[2]


def test_stress_through_both_programs(capsys, tiny_flags):
    flags = [flag for flag in tiny_flags if "data_dir" not in flag and "--task" not in flag]
    short = [*flags, "--max_length=30", "--num_train_samples=40", "--num_eval_samples=20", "--relational_distance=2", "--seed=3"]
    script = run(capsys, short, stress_main)
    same = run(capsys, [*short, "--task=stress", "--pooling_method=mean", "--epochs=3", "--lr=1e-4"])
    assert comparable(script)["history"] == comparable(same)["history"] and script["task"] == "stress"
    other = run(capsys, [*short, "--data_seed=4"], stress_main)
    assert other["store"]["path"] != script["store"]["path"]


@pytest.mark.parametrize(
    ("pooler", "jump"), [("cls", ""), ("mlp", ""), ("pma", ""), *(("glot", jump) for jump in ("cat", "max", "mean", "lstm"))]
)
def test_the_heat_map_works_for_every_pooler_and_says_what_leaks(capsys, tiny_flags, pooler, jump):
    flags = [flag for flag in tiny_flags if "data_dir" not in flag and "--task" not in flag]
    short = [*flags, "--max_length=30", "--num_train_samples=40", "--num_eval_samples=20", "--epochs=1", f"--pooling_method={pooler}"]
    result = run(capsys, [*short, f"--jk_mode={jump}"] if jump else short, stress_main)
    folder = Path(result["run_dir"])
    assert (folder / "augmented_similarity.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "augmented_similarity.pdf").read_bytes()[:4] == b"%PDF"
    assert result["shortcuts"]["length alone"] == 1.0 and 0 <= result["signal_kept"] <= 1
    assert json.loads((folder / "result.json").read_text()) == result


def test_the_stress_script_takes_a_decoders_last_token_unless_told(capsys, tiny_flags, tiny_llama):
    flags = [flag for flag in tiny_flags if "data_dir" not in flag and "--task" not in flag]
    sizes = ["--max_length=30", "--num_train_samples=20", "--num_eval_samples=10"]
    short = [*flags, *sizes, f"--model_name_or_path={tiny_llama}", "--pooling_method=cls"]
    assert load_run(Path(run(capsys, short, stress_main)["run_dir"]))[0].pooler.last
    assert not load_run(Path(run(capsys, [*short, "--decoder_cls_last_token=0"], stress_main)["run_dir"]))[0].pooler.last


def test_needle_tokens_are_those_of_the_signal():
    text = "of keys not nots never"
    spans = [(0, 2), (3, 5), (5, 7), (8, 11), (12, 16), (17, 22)]
    assert needle_tokens(text, spans) == [1, 2, 3, 5]


def test_odd_texts(capsys, tiny_flags, tiny_llama, tmp_path):
    texts = ["", "[SEP] [CLS]", "cat", " ".join(["dog"] * 100), "the cat runs"]
    rows = [{"sentence": text, "label": index % 2, "idx": index} for index, text in enumerate(texts)]
    for split in ("train", "validation"):
        write_rows(tmp_path / "odd/nyu-mll/glue/cola" / f"{split}.jsonl", rows)
    flags = [*tiny_flags, f"--data_dir={tmp_path / 'odd'}", "--pooling_method=glot", "--batch_size=4"]  # the last batch has one row
    result = run(capsys, flags)
    assert result["store"]["tokens"] == 2 + 4 + 3 + 16 + 5
    for gnn in ("gcn", "gin", "gine"):
        run(capsys, [*flags, f"--gnn_type={gnn}"])
    as_end = run(capsys, [*flags, f"--model_name_or_path={tiny_llama}"])  # no special tokens there: the empty text is one end token
    assert as_end["store"]["tokens"] == 1 + 6 + 1 + 16 + 3


def test_evaluation_batches_are_as_large_as_asked(capsys, tiny_flags, monkeypatch):
    sizes = []
    whole = splits.BatchLoader
    monkeypatch.setattr(splits, "BatchLoader", lambda *args: sizes.append((args[3], args[5] is None)) or whole(*args))
    run(capsys, [*tiny_flags, "--batch_size=7", "--eval_batch_size=5", "--epochs=1"])
    assert set(sizes) == {(7, False), (5, True)}


def test_refusals_before_the_backbone_is_loaded(capsys, tiny_flags, monkeypatch):
    monkeypatch.setattr("glot.states.tokens.Backbone", lambda *_: pytest.fail("the backbone was loaded"))
    assert "row 0 has no label" in fail(capsys, [*tiny_flags, "--eval_split=test"])[0]
    assert "splits there: test, train, validation" in fail(capsys, [*tiny_flags, "--eval_split=dev"])[0]
    assert "--hidden_layer=7" in fail(capsys, [*tiny_flags, "--hidden_layer=7"])[0]
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    assert "nobody is logged in; set WANDB_MODE=offline" in fail(capsys, [*tiny_flags, "--report_to=wandb"])[-1]


def test_a_hub_model_without_a_network_is_one_line(capsys, tiny_flags):
    lines = fail(capsys, [*tiny_flags, "--model_name_or_path=no-such-owner/no-such-model"])
    assert len(lines) == 1 and lines[0].startswith("error: --model_name_or_path=no-such-owner/no-such-model: it is not in the hub's cache")


def test_plans_and_printed_configurations(capsys, tiny_flags):
    assert main([*tiny_flags, "--dry_run"]) == 0
    plan = capsys.readouterr().out
    assert "cola, rows: 41 train, 17 validation" in plan and "encoder, 2 layers), hidden state 2, at most 16 tokens" in plan
    assert "--hidden_layer=9" in fail(capsys, [*tiny_flags, "--dry_run", "--hidden_layer=9"])[0]
    assert "--max_length=65: " in fail(capsys, [*tiny_flags, "--dry_run", "--max_length=65"])[0]
    assert main([*tiny_flags, "--print_config"]) == 0
    assert "task: cola\n" in capsys.readouterr().out


@pytest.mark.parametrize("layers", ["-1", "all"])
def test_the_estimate_is_close(capsys, tiny_flags, layers):
    flags = [*tiny_flags, f"--hidden_layer={layers}"]
    assert main([*flags, "--estimate"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    real = run(capsys, flags)["store"]
    assert estimate["sentences"] == real["sentences"] and estimate["tokens"] == real["tokens"] and estimate["bytes"] == real["bytes"]
    assert estimate["hours"] > 0


def test_padding_is_that_of_all_texts_and_not_of_the_few_that_were_timed():
    lengths = np.sort(np.random.default_rng(0).integers(5, 120, 20_000))[::-1].tolist()
    start = padded = 0
    while start < len(lengths):  # as `encode_sorted` cuts batches
        part = lengths[start : start + max(1, 4096 // lengths[start])]
        start, padded = start + len(part), padded + len(part) * part[0]
    assert padded_tokens(lengths, 1.0) == padded
    few = lengths[::40]
    assert padded_tokens(few, 40.0) == pytest.approx(padded, rel=0.02)
    assert padded_tokens(few, 1.0) * 40 > 1.05 * padded  # each of few batches spans more lengths


def test_the_demo_takes_no_flag_that_would_change_it(capsys):
    lines = fail(capsys, ["--epochs=1", "--selection=last"], demo_main)
    assert len(lines) == 2 and lines[0].startswith("error: --epochs: the demo is always the same; it takes --device, ")


def test_glot_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["glot", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("glot", run_name="__main__")
    assert "usage: glot" in capsys.readouterr().out
    assert glot_main([]) == 2 and glot_main(["--help"]) == 0
    assert "stress" in capsys.readouterr().out
    assert glot_main(["sterss"]) == 2
    assert "no such command (did you mean 'stress'?)" in capsys.readouterr().err


@pytest.mark.slow
def test_the_programs_as_processes(tiny_flags, tmp_path):
    done = subprocess.run([sys.executable, "main.py", *tiny_flags], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout)["task"] == "cola" and done.stderr == ""
    wrong = subprocess.run([sys.executable, "diagnostic_stress_test.py", "--tau=3"], capture_output=True, text=True, cwd=ROOT)
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (
        2,
        "",
        "error: --tau=3.0: must be at least -1 and below 1 (an edge needs cosine > tau)\n",
    )


@pytest.mark.slow
def test_a_killed_run_leaves_no_store_and_the_next_one_finishes_it(tiny_flags, tmp_path, monkeypatch, capsys):
    """The process dies in the middle of encoding; the next start encodes only what is missing."""
    script = (
        "import sys, os; from glot.states.store import writer; writer.CHUNK_TOKENS = 19\n"
        "from glot.states.backbone import model as backbone; backbone.PADDED_TOKENS = 16\n"
        "whole, calls = backbone.Backbone.encode_layers, []\n"
        "def encode(*args):\n    calls.append(1)\n    os._exit(9) if len(calls) > 8 else None\n    return whole(*args)\n"
        "backbone.Backbone.encode_layers = encode\nfrom glot.cli import main\nmain(sys.argv[1:])"
    )
    flags = list(tiny_flags)
    died = processes.run(["-c", script, *flags])
    assert died.returncode == 9 and not list(tmp_path.glob("hidden/*/manifest.json"))
    monkeypatch.setattr(writer, "CHUNK_TOKENS", 19)
    monkeypatch.setattr(backbone_model, "PADDED_TOKENS", 16)
    whole, calls = backbone_model.Backbone.encode_layers, []
    monkeypatch.setattr(backbone_model.Backbone, "encode_layers", lambda self, *args: calls.append(1) or whole(self, *args))
    resumed = run(capsys, flags)
    again = len(calls)
    fresh = run(capsys, [*flags, f"--store_dir={tmp_path / 'fresh'}"])
    assert 0 < again < len(calls) - again
    assert comparable(fresh)["history"] == comparable(resumed)["history"]


def test_a_picture_that_fails_does_not_lose_the_run(capsys, tiny_bert, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no room for a picture")

    monkeypatch.setattr("glot.report.heatmap.draw_heat_map", fail)
    flags = [
        f"--model_name_or_path={tiny_bert}",
        f"--output_dir={tmp_path}",
        f"--store_dir={tmp_path / 'h'}",
        "--max_length=40",
        "--verbose=0",
    ]
    result = run(capsys, ["--task=stress", *flags, "--num_train_samples=20", "--num_eval_samples=10", "--epochs=1", "--run_name=run"])
    assert result["notes"] == ["no heat map (RuntimeError: no room for a picture)"]
    assert json.loads((tmp_path / "run/result.json").read_text())["notes"] == result["notes"]
