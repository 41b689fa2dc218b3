"""Studies: tuning, reuse, failures, reports."""

import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_study_files import BAYES, STUDY

from glot import recipes
from glot.cli import glot_main
from glot.errors import ConfigError, DataError
from glot.report import plots
from glot.report.published import published_score
from glot.states import tokens
from glot.study import drawings, report, sweep
from glot.study.caveats import caveats
from glot.study.search import Search, Span, propose
from glot.study.sweep import list_runs, run_study
from glot.training.result_file import write_result


@pytest.fixture
def tiny_study(tmp_path, tiny_bert, mirror, monkeypatch) -> Path:
    monkeypatch.setenv("GLOT_DATA_DIR", str(mirror))
    monkeypatch.setenv("GLOT_STORE_DIR", str(tmp_path / "hidden"))
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY.replace("runs_with: {", f"runs_with: {{model_name_or_path: {tiny_bert}, "))
    return path


def test_a_search_goes_where_runs_score_best_and_is_found_again(tmp_path, mirror, tiny_bert, monkeypatch):
    path, fixed = tmp_path / "file.yaml", f"  model_name_or_path: {{value: {tiny_bert}}}\n  data_dir: {{value: {mirror}}}\n"
    path.write_text(BAYES.rstrip() + "\n" + fixed + f"  store_dir: {{value: {tmp_path}/hidden}}\n  max_length: {{value: 16}}\n")
    folder = run_study(path, str(tmp_path / "runs"))
    study = json.loads((folder / "study.json").read_text())
    assert len(study["cells"]) == 6 and all(cell["runs"][0]["run_dir"] for cell in study["cells"])
    for cell in study["cells"]:
        flags = json.loads((Path(cell["runs"][0]["run_dir"]) / "config.json").read_text())["flags"]
        assert flags["lr"] == float(cell["grid"]["lr"]) and flags["pooling_method"] == cell["grid"]["pooling_method"]
    assert "report.png" in {file.name for file in report.write_report(folder) and folder.iterdir()}
    dates = {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/result.json")}
    run_study(path, str(tmp_path / "runs"))
    assert {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/result.json")} == dates
    assert json.loads((folder / "study.json").read_text())["cells"] == study["cells"]
    path.write_text(path.read_text().replace("metrics/acc", "metrics/spearman"))
    with pytest.raises(ConfigError, match=r"metric\.name: metrics/spearman: no such metric in these runs; they have"):
        run_study(path, str(tmp_path / "runs"))
    assert any("method bayes: 6 runs are drawn one after the other" in line for line in list_runs(path, None))


def test_a_search_prefers_what_scored(monkeypatch):
    found = []

    def run(points):
        found.extend(float(point["x"]) for point in points)
        return [-((float(point["x"]) - 0.7) ** 2) if float(point["x"]) > 0.1 else None for point in points]

    propose(Search({"y": ["only"]}, {"x": Span(0.0, 1.0, False, False)}, "mcc", "maximize", 40), run, 1)
    assert len(found) == 40 and sum(abs(x - 0.7) < 0.15 for x in found[20:]) > 8 > 0.3 * len(found[20:])
    assert {float(Span(1e-4, 1e-1, True, False).draw(random.Random(seed))) < 1e-2 for seed in range(20)} == {True, False}


def test_an_arm_has_a_tuning_grid_of_its_own_or_none(tiny_study, tmp_path, capsys):
    text = tiny_study.read_text()
    arms = "  file's: {pooling_method: mean}\n  own: {pooling_method: glot, tune: {tau: [0.1, 0.5, 0.9]}}\n"
    arms += "  none: {pooling_method: max, tune: {}}\n"
    text = text[: text.index("  glot:")].replace("[cola, mrpc]", "[cola]") + arms
    tiny_study.write_text(text + "tune: {lr: [1e-4, 1e-2], seeds: [100]}\nseeds: [0]\n")
    listed = [line.split("|")[-2].strip() for line in list_runs(tiny_study, None) if "task=cola" in line]
    assert listed == ["2 tuning runs", "3 tuning runs", "nothing to tune"]
    assert glot_main(["sweep", str(tiny_study), f"--output_dir={tmp_path / 'runs'}"]) == 0
    cells = json.loads((tmp_path / "runs/tiny/study.json").read_text())["cells"]
    assert [set(cell["tuned"]["values"]) for cell in cells] == [{"lr"}, {"tau"}, set()]
    runs = [json.loads(Path(run["run_dir"], "config.json").read_text())["flags"] for cell in cells for run in cell["runs"]]
    assert [flags["lr"] for flags in runs[1:]] == [2e-4, 2e-4]  # which only the file's grid tunes
    assert runs[0]["lr"] == cells[0]["tuned"]["values"]["lr"] and runs[1]["tau"] == cells[1]["tuned"]["values"]["tau"]


def test_a_fitted_head_is_tuned_by_its_own_score_over_flags_that_act_in_it(tiny_study, tmp_path, capsys):
    text = tiny_study.read_text()
    arms = (
        "  fixed: {pooling_method: mean, head: probe}\n  fitted: {pooling_method: gated, head: probe}\n  trained: {pooling_method: mean}\n"
    )
    text = text[: text.index("  glot:")].replace("[cola, mrpc]", "[cola]") + arms
    tiny_study.write_text(text + "tune: {hidden_layer: ['0', '1', '2'], lr: [1e-4, 1e-1], seeds: [100]}\nseeds: [0]\n")
    assert [line.split("|")[-2].strip() for line in list_runs(tiny_study, None) if "task=cola" in line] == ["3 tuning runs"] + [
        "6 tuning runs"
    ] * 2
    assert glot_main(["sweep", str(tiny_study), f"--output_dir={tmp_path / 'runs'}"]) == 0
    fixed, fitted, _ = json.loads((tmp_path / "runs/tiny/study.json").read_text())["cells"]
    assert [set(point) for point in fixed["tuned"]["scores"]] == [{"hidden_layer", "score", "by_seed"}] * 3 and len(
        fitted["tuned"]["scores"]
    ) == 6
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs/tiny/runs").glob("*/result.json")]
    own = {result["heldout"]["mcc"] for result in results if result["pooler"] == "gated"}
    assert {point["score"] for point in fitted["tuned"]["scores"]} <= own  # and not what the head scored that was thrown away
    best = max(point["score"] for point in fixed["tuned"]["scores"])
    chosen = [point for point in fixed["tuned"]["scores"] if point["score"] == best]
    assert fixed["tuned"]["values"]["hidden_layer"] in {point["hidden_layer"] for point in chosen}
    assert all(result.get("heldout") is None for result in results if result["pooler"] == "mean" and result["history"])


def test_a_choice_within_its_error_is_named():
    def cell(arm: str, *by_seed: list[float]) -> dict:
        scores = [{"lr": f"1e-{place}", "score": sum(own) / len(own), "by_seed": own} for place, own in enumerate(by_seed, 1)]
        best = max(scores, key=lambda row: row["score"])
        return {"arm": arm, "grid": {"task": "cola"}, "tuned": {"values": {"lr": float(best["lr"])}, "scores": scores}, "runs": []}

    def around(spread: float) -> list[list[float]]:
        return [[mean - spread, mean + spread] for mean in (0.4, 0.5)]  # a lead of 0.1, with an error of 2 ** 0.5 * spread

    cells = [cell("near", *around(0.072)), cell("clear", *around(0.07)), cell("one value", [0.1, 0.9]), cell("one seed", [0.1], [0.2])]
    cells.append({**cells[0], "arm": "of before", "tuned": {"values": {"lr": 0.01}, "scores": [{"lr": "1e-2", "score": 0.5}] * 2}})
    (line,) = [line for line in caveats(cells).splitlines() if line.startswith("Tuned values that lead by at most")]
    assert line.endswith(": near (cola) lr=0.01 before lr=0.1.")
    assert "level (cola) lr=0.1 before lr=0.01" in caveats([cell("level", [0.7, 0.7], [0.7, 0.7])])


def test_a_study_is_tuned_reused_and_reported(tiny_study, tmp_path, capsys, monkeypatch):
    assert glot_main(["sweep", str(tiny_study), f"--output_dir={tmp_path / 'runs'}"]) == 0
    text = capsys.readouterr().out
    folder = tmp_path / "runs/tiny"
    record = json.loads((folder / "study.json").read_text())
    assert [(cell["arm"], cell["grid"]["task"]) for cell in record["cells"]] == [
        (arm, task) for task in ("cola", "mrpc") for arm in ("glot", "no graph", "mean")
    ]
    for cell in record["cells"]:
        scores = {row["lr"]: row["score"] for row in cell["tuned"]["scores"]}
        assert cell["tuned"]["values"]["lr"] == float(max(scores, key=scores.get))
        assert all(row["score"] == pytest.approx(sum(row["by_seed"]) / 2) and len(row["by_seed"]) == 2 for row in cell["tuned"]["scores"])
        results = [json.loads((Path(run["run_dir"]) / "result.json").read_text()) for run in cell["runs"]]
        assert [result["seed"] for result in results] == [0, 1, 2] and {result["data_seed"] for result in results} == {0}
    assert len(list((tmp_path / "hidden").iterdir())) == 2  # one store a task
    assert {"report.md", "report.csv", "report.tex", "report.png"} <= {path.name for path in folder.iterdir()}
    assert "| no graph" in text and "paired t-test over seeds" in text and "The last call of glot sweep took" in text
    (edges,) = [line for line in text.splitlines() if line.startswith("Tuned values at the edge of their grid")]
    assert edges.count("lr=") == 6  # of two values, both are edges
    rows = list(csv.DictReader((folder / "report.csv").open()))
    assert [row["n"] for row in rows] == ["3"] * 6 and all(row["difference"] for row in rows if row["arm"] != "no graph")
    orders = {path.parent.name: json.loads(path.read_text())["flags"]["order_seed"] for path in (folder / "runs").glob("*/config.json")}
    reported = {Path(run["run_dir"]).name for cell in record["cells"] for run in cell["runs"]}
    assert {orders[name] for name in reported} == {None}  # each reported run has a batch order of its own
    assert {order for name, order in orders.items() if name not in reported} == {100}  # tuning seeds 100 and 101 trained side by side
    for recipe in ("run_task", "run_stack"):
        monkeypatch.setattr(recipes, recipe, lambda config: pytest.fail("a finished run was run again"))
    run_study(tiny_study, str(tmp_path / "runs"))
    again = json.loads((folder / "study.json").read_text())
    assert again["cells"] == record["cells"]
    assert list(list_runs(tiny_study, [0]))[-1] == "30 runs in all"


def test_rows_that_cannot_be_read_are_named_before_anything_is_encoded(tiny_study, tmp_path, capsys):
    text = tiny_study.read_text()
    tiny_study.write_text(text.replace("[cola, mrpc]", "[qqp, rte]"))
    assert glot_main(["sweep", str(tiny_study), f"--output_dir={tmp_path / 'runs'}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error: {tiny_study}: glot, task=qqp: --data_dir=") and lines[0].endswith("(and so in 2 more)")
    assert len(lines) == 2 and not (tmp_path / "runs").exists() and not (tmp_path / "hidden").exists()
    tiny_study.write_text(text.replace("[cola, mrpc]", "[cola, qqp]").replace("seeds: [0, 1, 2]", "seeds: [0]"))
    assert glot_main(["sweep", str(tiny_study), f"--output_dir={tmp_path / 'runs'}"]) == 1  # what can be read is done
    lines = capsys.readouterr().err.splitlines()
    said = next(place for place, line in enumerate(lines) if line.startswith(f"not ready: {tiny_study}: glot, task=qqp: --data_dir="))
    assert said < next(place for place, line in enumerate(lines) if line.startswith("failed: ")) and not any(
        "cannot encode" in x for x in lines
    )
    assert len(list((tmp_path / "runs/tiny/runs").glob("*/result.json"))) >= 3


@pytest.mark.slow
def test_a_failed_run_does_not_stop_the_others(tiny_study, tmp_path, monkeypatch, caplog):
    whole = recipes.run_task

    def failing(config):
        if config.train.seed == 1 and config.pooler.pooling_method == "mean":
            raise RuntimeError("out of memory")
        return whole(config)

    monkeypatch.setattr(recipes, "run_task", failing)
    folder = run_study(tiny_study, str(tmp_path / "runs"))
    assert "failed: cola, mean, seed 1: RuntimeError: out of memory" in caplog.text
    text = report.write_report(folder)
    assert "2 runs failed and are not counted." in text and "2 (-1)" in text


@pytest.mark.slow
def test_two_jobs_give_the_same_results(tiny_study, tmp_path):
    kept = [line for line in tiny_study.read_text().splitlines() if not line.startswith("tune:")]
    tiny_study.write_text("\n".join(kept).replace("seeds: [0, 1, 2]", "seeds: [0]"))
    torch.set_num_threads(1)  # as each of two jobs on two cores
    one = json.loads((run_study(tiny_study, str(tmp_path / "one")) / "study.json").read_text())
    two = json.loads((run_study(tiny_study, str(tmp_path / "two"), jobs=2) / "study.json").read_text())
    for first, second in zip(one["cells"], two["cells"], strict=True):
        for run, other in zip(first["runs"], second["runs"], strict=True):
            assert Path(run["run_dir"]).name == Path(other["run_dir"]).name  # the fingerprint
            for name in ("model.safetensors", "predictions.csv"):
                assert (Path(run["run_dir"]) / name).read_bytes() == (Path(other["run_dir"]) / name).read_bytes(), name


def test_runs_that_do_not_belong_together_are_refused(tiny_study, tmp_path):
    folder = run_study(tiny_study, str(tmp_path / "runs"), seeds=[0])
    record = json.loads((folder / "study.json").read_text())
    path = Path(record["cells"][2]["runs"][0]["run_dir"]) / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "resolved": {**saved["resolved"], "data": "other"}}))
    result = path.parent / "result.json"
    write_result(path.parent, json.loads(result.read_text()))
    with pytest.raises(DataError, match=r"cola: data differs between glot \(.*\) and mean \(other\); they cannot be compared"):
        report.write_report(folder)
    path.write_text(json.dumps(saved))
    write_result(path.parent, {**json.loads(result.read_text()), "selection": {"rule": "last", "metrics": []}})
    with pytest.raises(DataError, match="selection differs"):
        report.write_report(folder)
    with pytest.raises(DataError, match=r"no study.json; give the folder"):
        report.write_report(tmp_path)


def test_a_study_over_ratios_draws_lines_with_what_shortcuts_score(tmp_path, tiny_bert, monkeypatch):
    monkeypatch.setenv("GLOT_STORE_DIR", str(tmp_path / "hidden"))
    path = tmp_path / "lines.yaml"
    path.write_text(f"""
kind: study
name: lines
runs_with: {{task: stress, model_name_or_path: {tiny_bert}, num_train_samples: 60, num_eval_samples: 30, max_length: 40, epochs: 1}}
grid:
  - {{stress_variant: [faithful], distractor_ratio: [0.2, 0.5, 0.9]}}
  - {{stress_variant: [relational], distractor_ratio: [0.5, 0.9]}}
arms:
  mean: {{pooling_method: mean}}
  adapool: {{pooling_method: adapool, lr: 1e-2}}
seeds: [0, 1]
""")
    drawn = []
    monkeypatch.setattr(drawings, "plot_lines", lambda *args: drawn.append(args) or plots.plot_lines(*args))
    folder = run_study(path, str(tmp_path / "runs"))
    text = report.write_report(folder)
    rows, shortcuts, *names, picture = drawn[0]
    points = [("faithful", 0.2), ("faithful", 0.5), ("faithful", 0.9), ("relational", 0.5), ("relational", 0.9)]
    assert list(dict.fromkeys((panel, x) for panel, x, _, _ in rows)) == points
    table = {
        tuple(line[2:].replace("distractor ratio ", "").split()[:2]): line.split("|")[2:-1]
        for line in text.splitlines()
        if line.count("|") == 7
    }
    assert {name for name in table if name[0] in ("faithful", "relational")} == {(panel, f"{x:g}") for panel, x in points}
    assert table["faithful", "0.9"][1].strip() == "100.0 %" and float(table["faithful", "0.2"][-1].split("%")[0]) > 90
    # 42 tokens are cut to 40, so a noun among the last two of 40 words is lost: in 1 - (15/17)^2 = 22 % of the texts
    assert float(table["relational", "0.9"][-1].split("%")[0]) == pytest.approx(78, abs=15)
    assert shortcuts["faithful", 0.9]["length alone"] == 1.0 and names == [
        "distractor_ratio",
        dict.fromkeys(("faithful", "relational"), "accuracy"),
    ]
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_published_figures_are_matched_by_backbone_pooler_and_task():
    assert published_score("bert-base-uncased", "cls", "cola", "mcc", "table 1") == 0.2266
    assert published_score("google-bert/bert-base-uncased", "cls", "SciFact", "ndcg_at_10") == 0.0231
    assert published_score("minilm", "cls", "cola", "mcc", "table 1") is None
    assert published_score("bert-base-uncased", "cls", "cola", "mcc", "table 3") is None
    assert published_score("mistralai/Mistral-7B-v0.1", "glot", "stress@0.9", "accuracy", "table 7") > 0.9


def test_layers_of_a_study_are_encoded_in_one_pass(tiny_study, tmp_path, monkeypatch):
    text = tiny_study.read_text().replace("task: [cola, mrpc]", "task: [cola]\n  hidden_layer: [0, 1, -1]")
    tiny_study.write_text(
        text.replace("grid: {", "grid:\n  ").replace("-1]}", "-1]").replace("tune: {lr: [1e-4, 3e-2], seeds: [100, 101]}\n", "")
    )
    loads = []
    whole = tokens._load
    monkeypatch.setattr(tokens, "_load", lambda *args: loads.append(1) or whole(*args))
    folder = run_study(tiny_study, str(tmp_path / "runs"), seeds=[0])
    record = json.loads((folder / "study.json").read_text())
    assert len(loads) == 1 and len(record["cells"]) == 9 and all(cell["runs"][0]["run_dir"] for cell in record["cells"])
    assert len(list((tmp_path / "hidden").iterdir())) == 3


@pytest.mark.slow
def test_workers_of_a_killed_study_do_not_stay(tmp_path):
    program = tmp_path / "study.py"
    program.write_text(
        "import os, time\nfrom glot.study.workers import open_pool\n"
        "if __name__ == '__main__':\n"
        "    with open_pool(2) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n        time.sleep(600)\n"
    )
    study = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    worker = int(study.stdout.readline())
    study.kill()
    study.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


def test_sweep_command_line(tiny_study, capsys):
    assert glot_main(["sweep", str(tiny_study), "--dry_run", "--seeds=0..4"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "54 runs in all"
    assert glot_main(["sweep", str(tiny_study), "--seeds=x"]) == 2 and glot_main(["sweep", str(tiny_study), "--jobs=0"]) == 2
    assert glot_main(["sweep", "/no/such.yaml"]) == 2 and glot_main(["report"]) == 2
    assert "the following arguments are required: folder; see glot report --help" in capsys.readouterr().err
    assert sweep.sweep_seeds("0..2") == [0, 1, 2]


def test_arms_that_were_not_at_their_best_are_named(tmp_path):
    def cell(arm: str, chosen: float, best: int, **fitted: object) -> dict:
        runs = []
        for seed in range(3):
            folder = tmp_path / f"{arm}-{seed}"
            folder.mkdir()
            (folder / "config.json").write_text("{}")
            result = {"best": {"epoch": best if seed else 1}, "history": [{}] * 4, "selection": {"rule": "heldout"}} | (
                fitted if seed else {}
            )
            write_result(folder, result)
            runs.append({"seed": seed, "run_dir": str(folder)})
        scores = [{"lr": value, "score": 0.5} for value in ("1e-4", "1e-3", "1e-2")]
        return {"arm": arm, "grid": {"task": "cola"}, "tuned": {"values": {"lr": chosen}, "scores": scores}, "runs": runs}

    text = report.caveats([cell("low", 1e-4, 4), cell("inside", 1e-3, 2), cell("high", 1e-2, 3)])
    edges, late = text.split("\n\n")
    assert edges.endswith("a wider one may score better: low (cola) lr=0.0001, high (cola) lr=0.01.")
    assert late.endswith("so more epochs may score better: low (cola) 2 of 3.")
    assert report.caveats([cell("fine", 1e-3, 2, svm={"C": 1.0})]) == ""
    assert report.caveats([cell("cut", 1e-3, 2, svm={"C": 1.0, "unfinished_fits": 3})]).endswith("a little: cut (cola) 2 of 2.")
    assert report.caveats([cell("folds", 1e-3, 2, probe=[{"C": 1.0}, {"C": 1.0, "unfinished_fits": 1}])]).endswith("folds (cola) 2 of 2.")
    assert "text (cola) lr=0.0001" in report.caveats([cell("text", "1e-4", 2)])  # a flag whose values are texts, such as hidden_layer
