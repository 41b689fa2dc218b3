"""MTEB through the command line, on small tasks in mteb's own layout."""

import csv
import json
import shutil
from pathlib import Path

import mteb
import pytest
import torch
import yaml
from conftest import ROOT, WORDS, write_rows
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.results.task_result import TaskError
from sentence_transformers import SentenceTransformer

from glot.cli import glot_main, main
from glot.encoder import SentenceEncoder
from glot.errors import ConfigError
from glot.integrations.mteb import MtebModel, evaluate_task, find_tasks, read_locally
from glot.nn.poolers.fixed import MeanPooler
from glot.settings.choices import MTEB_CACHE, POOLERS
from glot.settings.config import RunConfig
from glot.settings.flags import parse
from glot.settings.index import flag_facts
from glot.states.backbone import Backbone, find_backbone
from glot.study.files import read_study
from glot.study.resolution import resolve_cells

pytestmark = pytest.mark.slow  # mteb takes seconds to import and to evaluate
NAMES = list(flag_facts())


@pytest.fixture(scope="module")
def data(mteb_data) -> Path:
    return mteb_data


@pytest.fixture
def flags(data, tiny_bert, tmp_path) -> list[str]:
    return ["--task=mteb", f"--data_dir={data}", f"--model_name_or_path={tiny_bert}", f"--output_dir={tmp_path}/runs", "--verbose=0"]


def run(capsys, words: list[str]) -> dict:
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_local_tasks_of_three_kinds_are_scored_and_tabled(capsys, flags):
    names = "BIOSSES,EmotionClassification,SciFact,STS12"
    result = run(capsys, [*flags, f"--mteb_task={names}", "--pooling_method=mean", "--mteb_max_length=16"])
    scores = result["scores"]
    assert list(scores) == names.split(",") and result["failed"] == {} and all(-1 <= score <= 1 for score in scores.values())
    assert {"data_seed", "fingerprint", "seconds", "select_by", "versions"} <= result.keys() and "best" not in result
    folder = Path(result["run_dir"])
    with (folder / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    means = {row["category"]: float(row["score"]) for row in rows if row["task"] == "mean"}
    assert means["STS"] == pytest.approx(50 * (scores["BIOSSES"] + scores["STS12"]), abs=0.01)
    assert means["all"] == pytest.approx(25 * sum(scores.values()), abs=0.01)
    assert (folder / "table.md").read_text().count("\n") == len(rows) + 2
    assert [row["metric"] for row in rows[:4]] == ["cosine_spearman", "accuracy", "ndcg_at_10", "cosine_spearman"]


def test_finished_tasks_are_not_run_again_and_poolers_do_not_share_results(capsys, flags, monkeypatch):
    words = [*flags, "--mteb_task=BIOSSES", "--mteb_max_length=16"]
    first = run(capsys, [*words, "--pooling_method=mean"])
    other = run(capsys, [*words, "--pooling_method=max"])
    longer = run(capsys, [*words, "--pooling_method=mean", "--mteb_max_length=4"])
    assert len({result["fingerprint"] for result in (first, other, longer)}) == 3
    assert len({result["scores"]["BIOSSES"] for result in (first, other, longer)}) == 3
    monkeypatch.setattr("glot.encoder.SentenceEncoder.encode", lambda *_, **__: pytest.fail("a finished task was run again"))
    again = run(capsys, [*words, "--pooling_method=mean"])
    assert again["scores"] == first["scores"] and again["run_dir"] != first["run_dir"]


def test_what_other_data_gave_is_not_reported_again(capsys, flags, data, tmp_path):
    words = [flag for flag in flags if "data_dir" not in flag] + ["--mteb_task=BIOSSES", "--pooling_method=mean"]
    first = run(capsys, [*words, f"--data_dir={data}"])
    rows = [json.loads(line) for line in (data / "mteb/biosses-sts/test.jsonl").read_text().splitlines()]
    write_rows(
        tmp_path / "other/mteb/biosses-sts/test.jsonl", [{**row, "score": row["score"] * (-1) ** place} for place, row in enumerate(rows)]
    )
    assert run(capsys, [*words, f"--data_dir={tmp_path}/other"])["scores"] != first["scores"]
    assert run(capsys, [*words, f"--data_dir={data}"])["scores"] == first["scores"]


def test_data_that_changed_in_place_is_read_anew(capsys, flags, data, tmp_path):
    """The library that reads local tables knows those with a README by the folder's name alone."""
    root = tmp_path / "mirror"
    shutil.copytree(data, root)
    words = [flag for flag in flags if "data_dir" not in flag] + [f"--data_dir={root}", "--mteb_task=SciFact", "--pooling_method=mean"]
    first = run(capsys, words)
    queries = root / "mteb/scifact/queries.jsonl"
    queries.write_text(queries.read_text().replace("cat", "dog").replace("red", "blue"))
    assert run(capsys, words)["scores"] != first["scores"]
    shutil.copy(data / "mteb/scifact/queries.jsonl", queries)
    assert run(capsys, words)["scores"] == first["scores"]


def test_only_the_subsets_of_a_task_count(capsys, flags, data, tmp_path):
    """A cached result of two subsets must not stand in for a benchmark's task of one."""
    root = tmp_path / "two/mteb/amazon_counterfactual"
    texts = [f"the {one} {other}" for one in WORDS[5:10] for other in WORDS[10:16]]
    splits = ("train", "validation", "test")
    configs = []
    for place, name in enumerate(("en", "en-ext")):
        for split in splits:
            write_rows(
                root / name / f"{split}.jsonl", [{"text": text, "label": (row // (place + 1)) % 2} for row, text in enumerate(texts * 4)]
            )
        configs.append(
            {
                "config_name": name,
                "data_files": [{"split": split, "path": f"{name}/{split}.jsonl"} for split in splits],
            }
        )
    (root / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    words = [flag for flag in flags if "data_dir" not in flag] + [f"--data_dir={tmp_path}/two", "--pooling_method=mean"]
    both = run(capsys, [*words, "--mteb_task=AmazonCounterfactualClassification"])["scores"]["AmazonCounterfactualClassification"]
    task = mteb.get_task("AmazonCounterfactualClassification", hf_subsets=["en"])
    read_locally(task, tmp_path / "two", tmp_path / "links")
    encoder = SentenceEncoder(
        Backbone(find_backbone(flags[2].split("=")[1]), None, "float32", "2", torch.device("cpu")), MeanPooler(16), "bert-mean"
    )
    model = MtebModel(encoder, "1", {})
    cached, fresh = tmp_path / "cached", tmp_path / "fresh"
    whole = find_tasks("AmazonCounterfactualClassification", tmp_path / "two", tmp_path)
    options = {"batch_size": 32, "show_progress_bar": False}
    for part in whole:
        evaluate_task(model, part, cached, options)
    one, other = (evaluate_task(model, task, cache, options).score for cache in (cached, fresh))
    assert one is not None and one == other != pytest.approx(both, abs=1e-6)


def test_one_failing_task_does_not_stop_the_others(capsys, flags):
    result = run(capsys, [*flags, "--mteb_task=STS13,CIFAR10ZeroShot,BIOSSES", "--pooling_method=mean"])
    assert list(result["scores"]) == ["BIOSSES"] and "mteb/sts13-sts" in result["failed"]["STS13"] and result["failed"]["CIFAR10ZeroShot"]
    assert main([*flags, "--mteb_task=STS13", "--pooling_method=mean"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: --mteb_task=STS13: no task could be run; the first: STS13:")


def test_a_list_survives_whatever_a_task_raises_and_a_result_is_written(capsys, flags, monkeypatch, tmp_path):
    whole = mteb.evaluate

    def evaluate(model, task, **options):
        if task.metadata.name in ("STS13", "SciFact"):
            raise KeyError("corpus")
        return whole(model, task, **options)

    monkeypatch.setattr(mteb, "evaluate", evaluate)
    result = run(capsys, [*flags, "--mteb_task=STS13,BIOSSES", "--pooling_method=mean"])
    assert list(result["scores"]) == ["BIOSSES"] and result["failed"] == {"STS13": "KeyError: 'corpus'"}
    assert main([*flags, "--mteb_task=STS13,SciFact", "--pooling_method=mean", "--run_name=none"]) == 2
    (written,) = tmp_path.rglob("none/result.json")
    assert set(json.loads(written.read_text())["failed"]) == {"STS13", "SciFact"}


def test_a_score_that_is_no_number_is_a_failure(capsys, flags):
    words = [*flags, "--pooling_method=cls", "--hidden_layer=0"]  # the first token's embedding: every vector is the same
    result = run(capsys, [*words, "--mteb_task=BIOSSES,SciFact"])
    assert "is no number" in result["failed"]["BIOSSES"] and list(result["scores"]) == ["SciFact"]


@pytest.fixture(scope="module")
def trained(tiny_bert, mirror, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    words = "--task=stsb --pooling_method=glot --gat_hidden_dim=8 --tau=0.6 --epochs=1 --max_length=9 --verbose=0 --run_name=run"
    words += f" --output_dir={root} --store_dir={root}/hidden --data_dir={mirror} --model_name_or_path={tiny_bert} --lr=1e-2"
    assert main(words.split()) == 0
    return root / "run"


def test_a_checkpoint_brings_its_own_configuration_and_refuses_another(capsys, flags, trained):
    words = [flag for flag in flags if "model_name" not in flag] + ["--mteb_task=BIOSSES", f"--checkpoint_path={trained}"]
    result = run(capsys, words)
    assert (result["pooler"], list(result["scores"])) == ("glot", ["BIOSSES"])
    config = RunConfig.from_dict(json.loads((Path(result["run_dir"]) / "config.json").read_text())["flags"])
    assert (config.graph.tau, config.pooler.gat_hidden_dim, config.mteb.mteb_max_length) == (0.6, 8, 512)
    assert (
        run(capsys, [*words, "--pooling_method=glot", "--tau=0.6", "--scorer_hidden=128"])["scores"] == result["scores"]
    )  # the last is inert
    assert (
        main([*words, "--hidden_layer=1"]) == 2
        and "was trained on hidden state 2, not 1; leave --hidden_layer out" in capsys.readouterr().err
    )
    given = ["--tau=0.3", "--num_layers=3", "--jk_mode=mean", "--gat_hidden_dim=9", "--model_name_or_path=minilm", "--pooling_method=glot"]
    assert main([*words, *given]) == 2
    errors = capsys.readouterr().err
    for name, value in (("tau=0.3", "0.6"), ("num_layers=3", "2"), ("jk_mode=mean", "cat"), ("gat_hidden_dim=9", "8")):
        assert f"--{name}: {trained} was trained with {value}; leave the flag out" in errors
    assert "--model_name_or_path=minilm" in errors


def test_a_bare_pth_says_what_is_assumed(capsys, flags, trained, tmp_path):
    from glot.training.checkpoint import load_run

    model = load_run(trained)[0]
    torch.save(model.pooler.state_dict(), tmp_path / "bare.pth")
    words = [*flags, "--mteb_task=BIOSSES", f"--checkpoint_path={tmp_path}/bare.pth", "--tau=0.6"]
    result = run(capsys, words)
    assert result["pooler"] == "glot" and "-glot-" in result["run_dir"]
    (note,) = [note for note in result["notes"] if "bare.pth" in note]
    assert "read off its shapes: glot, d = 16, h = 8, K = 2, jump cat; assumed: --tau=0.6, --model_name_or_path=" in note
    assert result["scores"] == run(capsys, [*flags, "--mteb_task=BIOSSES", f"--checkpoint_path={trained}"])["scores"]
    assert main([*words[:-1], "--tau=0.6", "--model_name_or_path=minilm"]) == 2
    assert "its pooler takes d = 16, --model_name_or_path=minilm gives 384" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--checkpoint_path=/no/such\.pth: not there; give a run folder"):
        parse([*flags, "--checkpoint_path=/no/such.pth"])


def test_what_is_random_or_shortened_is_said(capsys, flags, tiny_bert):
    result = run(capsys, [*flags, "--mteb_task=BIOSSES", "--pooling_method=adapool"])
    assert result["notes"] == [
        f"--mteb_max_length=512: {tiny_bert} reads at most 64 tokens",
        "--pooling_method=adapool: no --checkpoint_path, so its weights are random (--seed=42)",
    ]
    assert main([*flags, f"--run_name={MTEB_CACHE}"]) == 2 and "must be a folder name" in capsys.readouterr().err
    assert main([*flags, "--seeds=0,1"]) == 2 and "--seeds: has no effect in this run" in capsys.readouterr().err


def test_an_export_scores_what_the_task_scores(capsys, flags, trained, tmp_path):
    names = ["BIOSSES", "EmotionClassification", "SciFact"]
    ours = run(capsys, [*flags, f"--mteb_task={','.join(names)}", f"--checkpoint_path={trained}", "--mteb_max_length=9"])
    assert glot_main(["export", str(trained), "--to", str(tmp_path / "export")]) == 0
    model = SentenceTransformer(str(tmp_path / "export"), trust_remote_code=True, device="cpu")
    data_dir = Path(next(flag for flag in flags if "data_dir" in flag).split("=")[1])
    found = mteb.evaluate(model, find_tasks(",".join(names), data_dir, tmp_path), cache=None, encode_kwargs={"batch_size": 64})
    theirs = {result.task_name: result.get_score() for result in found.task_results}
    assert theirs == pytest.approx(ours["scores"], abs=2e-3)


def test_names_of_tasks_and_benchmarks(tmp_path):
    (task,) = find_tasks("AmazonCounterfactualClassification", None, tmp_path)
    assert task.hf_subsets == ["en-ext", "en"] or set(task.hf_subsets) == {"en", "en-ext"}
    assert len(find_tasks("MTEB(eng, v2)", None, tmp_path)) == 41 and len(find_tasks("MTEB(eng, v1)", None, tmp_path)) == 56
    for wrong, complaint in (
        ("SciFacts", "did you mean 'SciFact'"),
        ("STS12,,", "'' is no task"),
        ("MTEB(eng)", "is no task and no benchmark"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            find_tasks(wrong, None, tmp_path)


@pytest.mark.parametrize("path", [ROOT / "mteb_eval_config.yaml", ROOT / "configs/mteb7.yaml"], ids=lambda path: path.stem)
def test_the_shipped_sweeps_are_flags_and_tasks(path, trained):
    content = yaml.safe_load(path.read_text())
    assert set(content["parameters"]) <= set(NAMES)
    tasks = content["parameters"]["mteb_task"]["values"]
    assert len(tasks) == (49 if "eval" in path.stem else 7) and len(find_tasks(",".join(tasks), None, Path("unused"))) == len(tasks)
    study = read_study(path)
    for cell in study.cells[:2]:
        own = {**cell.flags, **({"checkpoint_path": "standard"} if "checkpoint_path" in cell.flags else {})}
        parsed = parse([f"--{name}={value}" for name, value in own.items()])
        assert parsed.config.data.task == "mteb" and all(value in POOLERS for value in (own["pooling_method"],))
    if "eval" in path.stem:  # its checkpoint is not trained yet: one line says so, not 49
        with pytest.raises(ConfigError) as caught:
            resolve_cells(path, study)
        (line,) = caught.value.problems
        assert line.startswith(f"{path}: ") and "--checkpoint_path=saved_models" in line and line.endswith("(and so in 48 more)")
    assert content["command"][0] == "${env}" and content["program"] == "main.py"


def test_the_local_runner_takes_a_sweep_of_mteb(capsys, data, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOT_DATA_DIR", str(data))
    text = (ROOT / "configs/mteb7.yaml").read_text().replace("value: minilm", f"value: {tiny_bert}")
    start = text.index("    values: [Emotion")
    text = text[:start] + "    values: [BIOSSES, STS12]\n" + text[text.index("\n", start) + 1 :]
    (tmp_path / "tiny.yaml").write_text(text.replace("[cls, mean, max]", "[mean, max]"))
    assert glot_main(["sweep", str(tmp_path / "tiny.yaml"), f"--output_dir={tmp_path}/runs"]) == 0
    report = capsys.readouterr().out
    assert report.count("| BIOSSES") + report.count(" BIOSSES ") >= 2 and (tmp_path / "runs/mteb7/report.csv").is_file()
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "tuned.yaml").write_text(
        "kind: study\nname: t\nruns_with: {task: mteb}\narms: {a: {pooling_method: mean}}\ntune: {lr: [1, 2]}\n"
    )
    assert (
        glot_main(["sweep", str(tmp_path / "tuned.yaml")]) == 2 and "trains nothing, so there is nothing to tune" in capsys.readouterr().err
    )


def test_mtebs_own_mock_run_passes_on_an_export(trained, tmp_path):
    assert glot_main(["export", str(trained), "--to", str(tmp_path / "export")]) == 0
    model = SentenceTransformerEncoderWrapper(SentenceTransformer(str(tmp_path / "export"), trust_remote_code=True, device="cpu"))
    statuses = mteb.mock_run(model).task_results.values()
    assert not [status for status in statuses if isinstance(status, TaskError)]
    assert sum(status is not None for status in statuses) >= 25
