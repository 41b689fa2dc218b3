"""One flipped bit in any file of a run: found before the run is used, in one line."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import glot
from glot.cli import glot_main, main
from glot.errors import CheckpointError, GlotError
from glot.training.result_file import read_result


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << (place % 7)
    path.write_bytes(bytes(data))


@pytest.fixture
def run(tiny_flags, tmp_path, capsys) -> Path:
    assert main([*tiny_flags, "--pooling_method=adapool", "--epochs=1", "--run_name=run"]) == 0
    capsys.readouterr()
    return tmp_path / "runs" / "run"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "predictions.csv", "result.json"])
def test_a_flipped_bit_is_found_by_everything_that_reads_a_run(name, run, tmp_path, capsys):
    whole = (run / name).read_bytes()
    meaning = read_result(run)
    for place in range(5, len(whole), max(1, len(whole) // 12)):
        flip(run / name, place)
        try:
            same = name == "result.json" and json.loads((run / name).read_text()) == meaning
        except ValueError:
            same = False
        if not same:  # a blank of JSON may become another blank
            with pytest.raises(GlotError):
                glot.load(run)
            assert glot_main(["export", str(run), f"--to={tmp_path / 'ex'}"]) == 2
            assert glot_main(["rerun", str(run)]) == 2
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 2 and all(line.startswith("error: ") and str(run) in line for line in lines), lines
        (run / name).write_bytes(whole)
    assert glot.load(run).predict(["the red cat"])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensor: tensor.to(torch.int8), "holds torch.int8, and the model torch.float32"),
        (lambda tensor: tensor.double(), "holds torch.float64, and the model torch.float32"),
        (lambda tensor: tensor * float("nan"), "holds numbers that are not finite"),
    ],
)
def test_weights_of_another_kind_are_refused(change, complaint, run):
    (run / "result.json").unlink()  # which holds their checksum
    path = run / "model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file({**weights, name: change(weights[name])}, path)
    with pytest.raises(CheckpointError, match=complaint):
        glot.load(run)


def test_a_result_says_how_to_make_it_again(run, tiny_flags, tmp_path, capsys, monkeypatch):
    made = read_result(run)["made_by"]
    assert made["host"].keys() == {"system", "python", "cores", "threads", "device"} and made["date"].endswith("+00:00")
    words = shlex.split(made["command"])
    assert words[0] == "main.py" and main([*words[1:], "--run_name=again"]) == 0
    again = run.with_name("again")
    assert (again / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert main([f"--config={run / 'config.json'}", "--run_name=third"]) == 0
    assert (run.with_name("third") / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_no_secret_is_written(tiny_flags, tmp_path, capsys, monkeypatch):
    secrets = {name: f"secret-{name.lower()}" for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY")}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    assert main([*tiny_flags, "--pooling_method=adapool", "--epochs=1", "--run_name=run"]) == 0
    assert glot_main(["export", str(tmp_path / "runs/run"), f"--to={tmp_path / 'ex'}"]) == 0
    out = capsys.readouterr()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()) + (out.out + out.err).encode()
    assert written and not [value for value in secrets.values() if value.encode() in written]


def test_a_missing_file_is_named_and_an_older_run_still_loads(run):
    shutil.copytree(run, run.parent / "older")
    (run / "predictions.csv").unlink()
    with pytest.raises(CheckpointError, match=r"predictions\.csv: is missing"):
        read_result(run)
    result = json.loads((run.parent / "older/result.json").read_text())
    older = {key: value for key, value in result.items() if key not in ("files", "checksum")}
    (run.parent / "older/result.json").write_text(json.dumps(older))
    assert glot.load(run.parent / "older").predict(["the red cat"])


def test_a_damaged_run_of_a_study_is_done_anew(tiny_bert, mirror, tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(f"""
kind: study
name: s
runs_with: {{task: cola, model_name_or_path: {tiny_bert}, data_dir: {mirror}, store_dir: {tmp_path / "hidden"}, max_length: 16, epochs: 1}}
arms: {{mean: {{pooling_method: mean}}}}
seeds: [0, 1]
""")
    words = ["sweep", str(path), f"--output_dir={tmp_path / 'runs'}"]
    assert glot_main(words) == 0 and "0 of 2 runs reused" in capsys.readouterr().err
    assert glot_main(words) == 0 and "2 of 2 runs reused" in capsys.readouterr().err
    folder = next(path for path in (tmp_path / "runs/s/runs").iterdir())
    flip(folder / "model.safetensors", 200)
    assert glot_main(words) == 0
    err = capsys.readouterr().err
    assert "1 of 2 runs reused" in err and "model.safetensors: is not what the run wrote; the run is done anew" in err
    assert glot_main([*words, "--overwrite"]) == 0 and "0 of 2 runs reused" in capsys.readouterr().err


def test_a_study_with_failures_names_them_and_exits_1(tiny_bert, mirror, tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(f"""
kind: study
name: s
runs_with: {{model_name_or_path: {tiny_bert}, data_dir: {mirror}, store_dir: {tmp_path / "hidden"}, max_length: 16, epochs: 1}}
grid: {{task: [cola, rte]}}
arms: {{mean: {{pooling_method: mean}}}}
seeds: [0]
""")
    assert glot_main(["sweep", str(path), f"--output_dir={tmp_path / 'runs'}", "--retry=1"]) == 1  # the mirror has no rte
    err = capsys.readouterr().err
    assert any(line.startswith("failed: mean rte seed 0: ") for line in err.splitlines())
    path.write_text(path.read_text().replace("name: s", "name: ../../out"))
    assert glot_main(["sweep", str(path), f"--output_dir={tmp_path / 'runs'}"]) == 2
    assert "name: ../../out must be a folder name" in capsys.readouterr().err and not (tmp_path.parent / "out").exists()
    path.write_text(path.read_text().replace("name: ../../out", "name: link"))
    (tmp_path / "runs/link").symlink_to(tmp_path.parent)
    assert glot_main(["sweep", str(path), f"--output_dir={tmp_path / 'runs'}"]) == 2
    assert "is a link that leads out of it" in capsys.readouterr().err


def test_a_listing_says_which_results_are_damaged_and_passes_over_those_of_others(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "runs/good")
    path = run / "result.json"
    path.write_text(path.read_text().replace('"metrics"', '"mxtrics"', 1))
    (tmp_path / "runs/other").mkdir()
    (tmp_path / "runs/other/result.json").write_text('{"best": 3}')
    (tmp_path / "runs/third").mkdir()
    (tmp_path / "runs/third/result.json").write_text("[]")
    assert glot_main(["runs", str(tmp_path / "runs")]) == 0
    captured = capsys.readouterr()
    assert f"{path}: is not what the run wrote" in captured.err and "runs/third/result.json: is damaged" in captured.err
    assert "runs/good" in captured.out and "runs/run" not in captured.out and "other" not in captured.out


def test_a_configuration_with_a_value_that_no_flag_has_is_damaged(run):
    (run / "result.json").unlink()  # which holds its checksum
    path = run / "config.json"
    path.write_text(path.read_text().replace('"task": "cola"', '"task": "c0la"'))
    with pytest.raises(CheckpointError, match=r"config\.json: is damaged \(--task=c0la: unknown"):
        glot.load(run)
