"""Finished runs as a table, and done once more."""

import csv
import json
from pathlib import Path

import pytest

from glot.cli import glot_main, main
from glot.training.result_file import write_result


def run(capsys, words: list[str]) -> dict:
    assert main(words) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def folder(tiny_flags, capsys) -> Path:
    """Runs of two poolers, and one of three seeds."""
    for pooler in ("mean", "max"):
        run(capsys, [*tiny_flags, f"--pooling_method={pooler}", f"--run_name={pooler}", "--epochs=1"])
    run(capsys, [*tiny_flags, "--pooling_method=adapool", "--seeds=0..2", "--run_name=seeds", "--epochs=1"])
    return Path(next(word for word in tiny_flags if word.startswith("--output_dir")).partition("=")[2])


def test_runs_are_listed_and_sorted(folder, capsys):
    assert glot_main(["runs", str(folder), "--csv", "--sort=score"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 5 and {row["pooler"] for row in rows} == {"mean", "max", "adapool"}
    scores = [float(row["score"]) for row in rows]
    assert (
        scores == sorted(scores, reverse=True)
        and {row["metric"] for row in rows} == {"mcc"}
        and {row["floor"] for row in rows} == {"0.0000"}
    )
    assert sorted(row["seed"] for row in rows) == ["0", "1", "2", "42", "42"]
    (folder / "mean" / "result.json").write_text("{")  # a damaged one is left out
    assert glot_main(["runs", str(folder)]) == 0
    table = capsys.readouterr().out
    assert table.count("\n") == 6 and "| date" in table
    for words in ([], ["--html", str(folder / "page.html")]):
        capsys.readouterr()
        assert glot_main(["report", str(folder / "mean"), *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "mean/result.json: is damaged" in line
    for words, complaint in ((["--sort=scor"], "--sort=scor: no such column (did you mean 'score'?)"), ([], "no such folder")):
        assert glot_main(["runs", str(folder if words else folder / "none"), *words]) == 2
        assert complaint in capsys.readouterr().err
    (folder / "empty").mkdir()
    assert glot_main(["runs", str(folder / "empty")]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_a_report_of_any_folder_joins_seeds(folder, capsys):
    assert glot_main(["report", str(folder)]) == 0
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    counts = {Path(line[0].strip()).name: line[7].strip() for line in lines}
    assert counts == {"mean": "1", "max": "1", "seeds": "3"}
    summary = json.loads((folder / "seeds" / "result.json").read_text())["summary"]["mcc"]
    (own,) = [line for line in lines if line[0].strip().endswith("seeds")]
    assert float(own[5]) == pytest.approx(summary["mean"], abs=1e-4) and float(own[6]) == pytest.approx(summary["sd"], abs=1e-4)
    (folder / "empty").mkdir()
    assert glot_main(["report", str(folder / "empty")]) == 2
    assert "holds neither study.json nor a finished run" in capsys.readouterr().err


def test_a_rerun_is_no_further_seed(tiny_flags, capsys, tmp_path):
    words = [*tiny_flags, "--pooling_method=gated", "--epochs=1", "--seeds=0,1", "--stack_seeds=1", "--run_name=both", "--lr=1e-2"]
    assert main(words) == 0
    folder = Path(json.loads(capsys.readouterr().out)["run_dir"])
    assert glot_main(["rerun", str(folder / "seed-1"), "--check"]) in (0, 1)
    told = capsys.readouterr().out
    assert "DIFFERS" not in told or "it was trained stacked with other seeds" in told
    assert glot_main(["report", str(folder)]) == 0
    counts = {Path(line.split("|")[1].strip()).name: line.split("|")[8].strip() for line in capsys.readouterr().out.splitlines()[2:]}
    assert counts == {"both": "2", "seed-1-again": "1"}


def test_a_run_is_done_again_and_compared(folder, tiny_flags, capsys):
    assert glot_main(["rerun", str(folder / "mean"), "--check"]) == 0
    out = capsys.readouterr().out
    assert "model.safetensors: equal" in out and "predictions.csv: equal" in out and "scores: equal" in out
    assert (folder / "mean-again" / "result.json").is_file()
    changed = folder / "max" / "predictions.csv"
    changed.write_text(changed.read_text().replace("acceptable", "odd", 1))
    assert glot_main(["rerun", str(folder / "max"), "--check"]) == 2
    assert "predictions.csv: is not what the run wrote" in capsys.readouterr().err
    write_result(folder / "max", json.loads((folder / "max" / "result.json").read_text()))  # as another version would have written it
    assert glot_main(["rerun", str(folder / "max"), "--check", f"--output_dir={folder / 'elsewhere'}"]) == 1
    assert "predictions.csv: DIFFERS" in capsys.readouterr().out
    run(capsys, [*tiny_flags, "--pooling_method=mean", "--folds=2", "--run_name=folds", "--epochs=1"])
    assert glot_main(["rerun", str(folder / "folds"), "--check"]) == 0
    told = capsys.readouterr().out
    assert all(f"fold-{fold}/model.safetensors: equal" in told for fold in range(2))
    (folder / "max" / "result.json").unlink()
    assert glot_main(["rerun", str(folder / "max")]) == 2
    assert "no result.json; give the folder of a finished run" in capsys.readouterr().err


def test_the_summary_goes_to_stderr_and_the_json_alone_to_stdout(tiny_flags, capsys):
    words = [word for word in tiny_flags if word != "--verbose=0"]
    assert main([*words, "--pooling_method=mean", "--epochs=1"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["best"] and "| metric" in err and "floor" in err and "cola, " in err
    assert main([*words, "--pooling_method=mean", "--epochs=1", "--seeds=0,1"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["runs"]) == 2 and "2 seeds" in err and "| metric" in err


def test_a_study_that_moved_is_reported_from_any_folder(tiny_bert, mirror, tmp_path, capsys, monkeypatch):
    path = tmp_path / "study.yaml"
    path.write_text(f"""
kind: study
name: s
runs_with: {{task: cola, model_name_or_path: {tiny_bert}, data_dir: {mirror}, store_dir: {tmp_path / "hidden"}, max_length: 16, epochs: 1}}
arms: {{mean: {{pooling_method: mean}}, max: {{pooling_method: max}}}}
seeds: [0, 1]
""")
    assert glot_main(["sweep", str(path), f"--output_dir={tmp_path / 'runs'}"]) == 0
    first = capsys.readouterr().out.split("written:")[0]
    (tmp_path / "runs" / "s").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert glot_main(["report", "."]) == 0
    assert capsys.readouterr().out.split("written:")[0] == first and (tmp_path / "moved/report.pdf").is_file()
    record = json.loads((tmp_path / "moved/study.json").read_text())
    for damaged in ({**record, "baseline": "max"}, {**record, "cells": [{**record["cells"][0], "grid": None}]}, None, [], "{"):
        (tmp_path / "moved/study.json").write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
        assert glot_main(["report", "."]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "study.json: is damaged" in line
