"""Several poolers on MTEB from one pass of the backbone, and token states that are kept by text."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import WORDS

from glot.cli import main
from glot.states.backbone import Backbone


@pytest.fixture
def flags(mteb_data, tiny_bert, tmp_path) -> list[str]:
    return ["--task=mteb", f"--data_dir={mteb_data}", f"--model_name_or_path={tiny_bert}", f"--output_dir={tmp_path}/runs", "--verbose=0"]


def run(capsys, words: list[str]) -> dict:
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def two_runs(tiny_bert, tmp_path) -> list[Path]:
    """An AdaPool and a GLOT run on the tiny backbone, of different sizes."""
    lines = [json.dumps({"query": f"{a} {b}", "pos": [f"the {a} {b}"]}) for a in WORDS[5:10] for b in WORDS[10:14]]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    words = f"--task=embedding --train_file={tmp_path}/pairs.jsonl --model_name_or_path={tiny_bert} --max_length=12 --verbose=0 --epochs=1"
    words += f" --batch_size=4 --store_dir={tmp_path}/hidden --output_dir={tmp_path}/trained --save_dir={tmp_path}/saved"
    for name, own in (
        ("ada", "--pooling_method=adapool --scorer_hidden=5"),
        ("glot", "--pooling_method=glot --gat_hidden_dim=3 --tau=0.6"),
    ):
        assert main([*words.split(), *own.split(), f"--run_name={name}"]) == 0
    return [tmp_path / "trained/ada", tmp_path / "trained/glot"]


OF_TWO = "BIOSSES,SciFact"
OF_THREE = f"{OF_TWO},EmotionClassification"


def test_several_poolers_share_one_pass_and_score_as_they_do_apart(capsys, flags, two_runs, monkeypatch):
    capsys.readouterr()
    read: list[int] = []
    whole = Backbone.encode
    monkeypatch.setattr(Backbone, "encode", lambda self, ids, skips=None: read.append(len(ids)) or whole(self, ids, skips))
    own = [flag for flag in flags if "model_name" not in flag]
    words = [f"--mteb_task={OF_TWO}", "--mteb_max_length=16"]
    together = run(capsys, [*own, *words, f"--checkpoint_path={two_runs[0]},{two_runs[1]}", "--mteb_poolers=mean,cls"])
    texts_together = sum(read)
    read.clear()
    apart = [run(capsys, [*own, *words, f"--checkpoint_path={path}", f"--output_dir={path}-apart"]) for path in two_runs]
    assert texts_together <= sum(read) / 2  # one of two, and each distinct text of a task once
    apart += [run(capsys, [*flags, *words, f"--pooling_method={name}", f"--output_dir={two_runs[0]}-{name}"]) for name in ("mean", "cls")]
    assert not together["runs"][0]["failed"], together["runs"][0]["failed"]
    assert [one["pooler"] for one in together["runs"]] == ["adapool", "glot", "mean", "cls"]
    assert len({one["run_dir"] for one in together["runs"]}) == 4
    named = ["--mteb_poolers=mean", "--run_name=x", "--overwrite=1", "--mteb_task=BIOSSES", "--mteb_max_length=16"]
    twin = shutil.copytree(two_runs[1], two_runs[1].with_name("twin"))
    same = run(capsys, [*own, *named, f"--checkpoint_path={two_runs[1]},{twin}"])
    assert len({one["run_dir"] for one in same["runs"]}) == 3 and all(Path(one["run_dir"]).is_dir() for one in same["runs"])
    for one, other in zip(together["runs"], apart, strict=True):
        assert not one["failed"], (one["pooler"], one["failed"])
        assert list(one["scores"]) == OF_TWO.split(",") and one["fingerprint"] == other["fingerprint"]
        assert one["scores"] == pytest.approx(other["scores"], abs=2e-6)
        assert json.loads((Path(one["run_dir"]) / "result.json").read_text())["scores"] == one["scores"]
        assert (Path(one["run_dir"]) / "table.csv").read_text().count("\n") > 3


def test_texts_that_were_read_before_need_no_backbone(capsys, flags, tmp_path, monkeypatch):
    words = [*flags, f"--mteb_task={OF_THREE}", "--mteb_max_length=16", "--mteb_store=1", f"--store_dir={tmp_path}/kept"]
    first = run(capsys, [*words, "--mteb_poolers=mean,max"])
    monkeypatch.setattr(Backbone, "encode_sorted", lambda *_: pytest.fail("a text was read again"))
    monkeypatch.setattr(Backbone, "encode", lambda *_: pytest.fail("a text was read again"))
    again = run(capsys, [*words, "--mteb_poolers=max,std", f"--output_dir={tmp_path}/other"])
    assert not again["runs"][1]["failed"], again["runs"]
    assert again["runs"][0]["scores"] == first["runs"][1]["scores"]
    monkeypatch.undo()
    live = run(capsys, [*flags, f"--mteb_task={OF_THREE}", "--mteb_max_length=16", "--pooling_method=std", f"--output_dir={tmp_path}/live"])
    assert live["scores"] == pytest.approx(again["runs"][1]["scores"], abs=2e-2) and live["fingerprint"] != again["runs"][1]["fingerprint"]


def test_poolers_that_cannot_share_a_pass_say_so(capsys, flags, two_runs, tiny_llama, tmp_path, monkeypatch):
    capsys.readouterr()
    own = [flag for flag in flags if "model_name" not in flag] + ["--mteb_task=BIOSSES"]
    words = f"--task=embedding --train_file={tmp_path}/pairs.jsonl --model_name_or_path={tiny_llama} --max_length=12 --verbose=0 --epochs=1"
    words += f" --batch_size=4 --store_dir={tmp_path}/hidden --output_dir={tmp_path}/trained --save_dir={tmp_path}/saved --run_name=llama"
    assert main([*words.split(), "--pooling_method=adapool"]) == 0
    capsys.readouterr()
    for given, said in (
        ([f"--checkpoint_path={two_runs[0]},{tmp_path}/trained/llama"], "on"),
        ([f"--checkpoint_path={two_runs[0]},{tmp_path}/nowhere"], f"--checkpoint_path={tmp_path}/nowhere: not there"),
        ([f"--checkpoint_path={two_runs[0]},{two_runs[1]}", "--pooling_method=adapool"], "--pooling_method=adapool:"),
        (["--mteb_poolers=mean,glott"], "--mteb_poolers=glott: unknown (did you mean 'glot'?)"),
        (["--mteb_poolers=mean,mean"], "--mteb_poolers=mean,mean: mean is named twice"),
        (["--mteb_poolers=mean", "--pooling_method=cls"], "--pooling_method: --mteb_poolers says which poolers are scored"),
        ([f"--checkpoint_path={two_runs[0]},{two_runs[0]}"], f"{two_runs[0]} is named twice"),
        ([f"--checkpoint_path={two_runs[0]},"], "has nothing between two commas, or behind the last"),
        (
            [f"--checkpoint_path={two_runs[0]}", "--mteb_poolers=glot", "--tau=0.9"],
            "--tau: checkpoints bring their own, and --mteb_poolers",
        ),
        (
            [f"--checkpoint_path={next((tmp_path / 'saved').glob('*.pth')).rename(tmp_path / 'bare.pth')},{two_runs[0]}"],
            "says nothing of its pooler",
        ),
        (["--mteb_poolers=crossglot"], "--mteb_poolers=crossglot: crossglot scores pairs of texts"),
        (["--mteb_poolers=mean,cls", "--report_to=wandb"], "--report_to=wandb: takes one pooler per process"),
    ):
        monkeypatch.setenv("WANDB_MODE", "offline")
        backbone = [] if "checkpoint" in given[0] else [flags[2]]
        assert main([*own, *backbone, *given]) == 2
        captured = capsys.readouterr()
        assert said in captured.err and "Traceback" not in captured.err, captured.err
