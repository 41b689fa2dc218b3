"""Where numbers go while a run goes on: the record in the run folder, and the trackers that are asked for."""

import importlib.util
import json
import os
import struct
import time
from pathlib import Path

from accelerate import tracking
from wandb.proto.wandb_internal_pb2 import Record

from glot.cli import glot_main, main
from glot.csv_files import read_csv
from glot.training.tracking import JsonlTracker


def run(capsys, flags: list[str]) -> dict:
    """The result object that the command prints last."""
    code = main(flags)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def fail(capsys, flags: list[str]) -> list[str]:
    """The lines of a refused command."""
    code = main(flags)
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    return captured.err.splitlines()


def offline_records(folder: Path) -> list[Record]:
    """What wandb wrote offline. Its service writes on for a moment after the run has finished."""
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    for _ in range(300):
        records = read_records(path)
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path}: no record of the end")


def read_records(path: Path) -> list[Record]:
    """Protocol buffers in the format of LevelDB's log, after a header of seven bytes."""
    content, at, part, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # a block ends in padding where no header fits
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if at + 7 + length > len(content):  # is being written
            break
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(Record.FromString(part))
            part = b""
    return records


def test_several_trackers_hear_the_same_numbers(capsys, tiny_flags, monkeypatch):
    class Listener(tracking.GeneralTracker):
        """A tracker of accelerate that keeps what it hears."""

        name, requires_logging_directory, heard = "trackio", False, []

        def __init__(self, run_name):
            super().__init__()
            self.heard.append(("run", run_name))

        @property
        def tracker(self):
            return self

        def start(self):
            self.heard.append(("start",))

        def store_init_configuration(self, values):
            self.heard.append(("config", values))

        def log(self, values, step=None, **_):
            self.heard.append(("log", step, values))

        def finish(self):
            self.heard.append(("finish",))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "trackio", Listener)
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: name if name == "trackio" else real(name, *rest))
    result = run(capsys, [*tiny_flags, "--report_to=tensorboard, trackio", "--log_every=1"])
    folder = Path(result["run_dir"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [{"step": step, **values} for kind, step, values in (row for row in Listener.heard if row[0] == "log")]
    assert logged == lines and (folder / "tensorboard").is_dir()
    assert Listener.heard[0] == ("run", folder.name) and Listener.heard[1] == ("start",) and Listener.heard[-1] == ("finish",)
    assert Listener.heard[2][1]["pooling_method"] == "max"
    for value, said in (
        ("wandb,nothing", "--report_to=nothing: unknown"),
        ("none,wandb", "--report_to=none,wandb: none stands alone"),
        ("mlflow,mlflow", "--report_to=mlflow,mlflow: mlflow is named twice"),
    ):
        assert said in fail(capsys, [*tiny_flags, f"--report_to={value}"])[-1]
    monkeypatch.undo()
    assert "--report_to=mlflow: the package is not installed; pip install mlflow" in fail(capsys, [*tiny_flags, "--report_to=mlflow"])[-1]


def test_trackers(capsys, tiny_flags, monkeypatch, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = run(capsys, [*tiny_flags, "--report_to=tensorboard", "--log_every=1"])
    events = EventAccumulator(str(Path(result["run_dir"]) / "tensorboard")).Reload()
    assert {"loss/step", "metrics/acc", "metrics/mcc"} <= set(events.Tags()["scalars"])
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    logged = run(capsys, tiny_flags)
    records = offline_records(Path(logged["run_dir"]))
    started = next(record.run for record in records if record.HasField("run"))
    assert (started.project, started.run_group, started.display_name) == ("GLOT", "mine", Path(logged["run_dir"]).name)
    summary = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for record in records for item in record.summary.update}
    assert summary["best/accuracy"] == logged["best"]["metrics"]["accuracy"] and summary["best/epoch"] == logged["best"]["epoch"]
    assert summary["trainable_params"] == logged["trainable_params"] and summary["floor/accuracy"] == logged["floor"]["accuracy"]
    artifact = next(record.artifact for record in records if record.HasField("artifact"))
    assert artifact.type == "model"
    assert {entry.path for entry in artifact.manifest.contents} == {"config.json", "model.safetensors", "result.json"}
    monkeypatch.delenv("WANDB_RUN_GROUP")
    several = run(capsys, [*tiny_flags, "--seeds=3,4", "--run_name=both"])
    runs = [next(one.run for one in offline_records(Path(seed["run_dir"])) if one.HasField("run")) for seed in several["runs"]]
    assert [(one.display_name, one.run_group) for one in runs] == [("both-seed-3", "both"), ("both-seed-4", "both")]
    stacked = run(capsys, [*tiny_flags, "--seeds=5,6", "--stack_seeds=1", "--run_name=side", "--pooling_method=adapool"])
    names = [
        next(one.run.display_name for one in offline_records(Path(seed["run_dir"])) if one.HasField("run")) for seed in stacked["runs"]
    ]
    assert names == ["side-seed-5", "side-seed-6"]  # side by side in one process, and still two runs
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "best" in run(capsys, tiny_flags)


def test_a_study_is_one_group_and_its_report_a_run(tiny_flags, monkeypatch, tmp_path, capsys):
    for name, value in {"MODE": "offline", "SILENT": "true", "DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in tiny_flags if "output_dir" not in flag)
    arms = "{mean: {pooling_method: mean}, max: {pooling_method: max}}\nseeds: [0, 1]\ncompare: [[mean, max]]"
    (tmp_path / "study.yaml").write_text(f"kind: study\nname: pair\nruns_with: {json.dumps(flags)}\narms: {arms}\n")
    assert glot_main(["sweep", str(tmp_path / "study.yaml"), f"--output_dir={tmp_path / 'runs'}"]) == 0
    folder = tmp_path / "runs/pair"
    groups = [record.run.run_group for run in (folder / "runs").iterdir() for record in offline_records(run) if record.HasField("run")]
    assert groups == ["pair"] * 4 and "WANDB_RUN_GROUP" not in os.environ
    records = offline_records(folder)
    started = next(record.run for record in records if record.HasField("run"))
    assert (started.run_group, started.display_name) == ("pair", "pair-report")
    (table,) = folder.glob("wandb/offline-run-*/files/media/table/tables/comparisons_*.table.json")
    shown, (header, rows) = json.loads(table.read_text()), read_csv(folder / "comparisons.csv")
    assert shown["columns"] == header and shown["data"] == rows and rows[0][0] == "mean - max"
    pictures = {path.name.split("_")[0] for path in folder.glob("wandb/offline-run-*/files/media/images/figures/*.png")}
    assert pictures == {"report", "comparisons"}


def test_a_record_that_cannot_be_closed_does_not_take_the_result_along(capsys, tiny_flags, monkeypatch):
    def full(self, failed=False):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JsonlTracker, "close", full)
    code = main(tiny_flags)
    captured = capsys.readouterr()
    assert code == 0 and (Path(json.loads(captured.out)["run_dir"]) / "result.json").is_file()
    assert "the last lines of metrics.jsonl cannot be written (No space left on device)" in captured.err


def test_a_study_is_reported_where_wandb_cannot(tiny_flags, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in tiny_flags if "output_dir" not in flag)
    (tmp_path / "s.yaml").write_text(f"kind: study\nname: s\nruns_with: {json.dumps(flags)}\narms: {{mean: {{pooling_method: mean}}}}\n")
    assert glot_main(["sweep", str(tmp_path / "s.yaml"), f"--output_dir={tmp_path}"]) == 0
    capsys.readouterr()

    def broken(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr("wandb.init", broken)
    assert glot_main(["sweep", str(tmp_path / "s.yaml"), f"--output_dir={tmp_path}"]) == 0  # its runs are found
    assert "the report is complete, but wandb did not take it" in capsys.readouterr().err
