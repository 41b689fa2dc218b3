"""Where numbers go while a run goes on: the record in the run folder, and the trackers that are asked for."""

import importlib.util
import json
from pathlib import Path

from accelerate import tracking

from glot.cli import main


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
    logged = run(capsys, tiny_flags)
    assert list((Path(logged["run_dir"]) / "wandb").glob("offline-run-*/*.wandb"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert "best" in run(capsys, tiny_flags)
