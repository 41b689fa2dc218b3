"""Where numbers go while a run goes on. `metrics.jsonl` in the run folder is the record; others are further readers."""

import atexit
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from glot.errors import ConfigError, library_door, need, reason
from glot.progress import warn
from glot.training.metrics import finite
from glot.training.wandb_runs import WandbTracker, refuse_to_ask, split_name
from glot.types import Tracker


class JsonlTracker:
    """One JSON line for each call of `log`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[str] = []
        path.touch()

    def start(self, config: dict[str, object]) -> None:
        """Nothing to do: the configuration has a file of its own."""

    def go_on(self, lines: int, step: int) -> None:
        """Cut the file to its first lines."""
        kept = self._path.read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
        self._path.write_text("".join(kept), encoding="utf-8")

    def log(self, values: dict[str, float], step: int) -> None:
        """Append a line. Lines that a full disk does not take wait for the next call: training goes on."""
        line = {"step": step} | {name: finite(value) for name, value in values.items()}
        self._waiting.append(json.dumps(line) + "\n")
        self._write(final=False)

    def summarise(self, result: dict[str, Any]) -> None:
        """Nothing to do: the result has a file of its own."""

    def close(self, failed: bool = False) -> None:
        """Write what waits.

        Raises:
            OSError: it still cannot be written.
        """
        self._write(final=True)

    def _write(self, final: bool) -> None:
        size = self._path.stat().st_size
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.writelines(self._waiting)
        except OSError as error:
            os.truncate(self._path, size)
            if final:
                raise
            if len(self._waiting) == 1:
                warn(f"{self._path}: cannot be written ({error.strerror}); training goes on, make room before it ends")
        else:
            self._waiting.clear()


class TensorboardTracker:
    """Event files under `tensorboard/` in the run folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._writer_of = str(folder / "tensorboard"), SummaryWriter
        self._writer = SummaryWriter(self._folder)

    def start(self, config: dict[str, object]) -> None:
        """Write the configuration as text."""
        self._writer.add_text("config", json.dumps(config, indent=1))

    def go_on(self, lines: int, step: int) -> None:
        """Hide what was written after a step."""
        if lines:
            self._writer.close()
            self._writer = self._writer_of(self._folder, purge_step=step + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        """Write scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def summarise(self, result: dict[str, Any]) -> None:
        """Nothing to do: the last scalars say it."""

    def close(self, failed: bool = False) -> None:
        """Flush and close."""
        self._writer.close()


def _leave_stdout() -> None:
    sys.stdout.flush()
    sys.stdout = sys.stderr


class Trackers:
    """Several trackers as one."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def start(self, config: dict[str, object]) -> None:
        """Start all."""
        for tracker in self._trackers:
            tracker.start(config)

    def go_on(self, lines: int, step: int) -> None:
        """Go on with all."""
        for tracker in self._trackers:
            tracker.go_on(lines, step)

    def log(self, values: dict[str, float], step: int) -> None:
        """Log to all."""
        for tracker in self._trackers:
            tracker.log(values, step)

    def summarise(self, result: dict[str, Any]) -> None:
        """The result to all."""
        for tracker in self._trackers:
            tracker.summarise(result)

    def close(self, failed: bool = False) -> None:
        """Close all."""
        for tracker in self._trackers:
            tracker.close(failed)


class AccelerateTracker:
    """Any further tracker that accelerate knows, by its name there; it writes where that library does.

    Source: `accelerate.tracking`.

    Args:
        name: a key of accelerate's `LOGGER_TYPE_TO_CLASS`.
        run_dir: of the run.
    """

    def __init__(self, name: str, run_dir: Path) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind = LOGGER_TYPE_TO_CLASS[name]
        where = {"logging_dir": str(run_dir / name)} if kind.requires_logging_directory else {}
        self._name, self._tracker = name, kind("-".join(split_name(run_dir)), **where)

    def start(self, config: dict[str, object]) -> None:
        """Open the run, with the configuration.

        Raises:
            ConfigError: the library cannot.
        """
        from accelerate import PartialState

        door = library_door(ConfigError, lambda error: f"--report_to={self._name}: cannot be started ({reason(error)}); use none")
        with door, redirect_stdout(sys.stderr):  # standard output is for the result
            PartialState()  # accelerate's own log lines ask for it
            self._tracker.start()
            self._tracker.store_init_configuration({name: "" if value is None else value for name, value in config.items()})

    def go_on(self, lines: int, step: int) -> None:
        """Nothing to do: what is logged again after a step is a later value of it."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Send numbers; what is no number is left out."""
        with redirect_stdout(sys.stderr):
            self._tracker.log({name: value for name, value in values.items() if finite(value) is not None}, step=step)

    def summarise(self, result: dict[str, Any]) -> None:
        """Nothing to do: accelerate has no word for it."""

    def close(self, failed: bool = False) -> None:
        """Finish. What the library says when the process ends goes to stderr too: trackio says it twice."""
        with redirect_stdout(sys.stderr):
            self._tracker.finish()
        atexit.register(_leave_stdout)  # it runs before what the library registered earlier


def resolve_report_to(report_to: str) -> str:
    """`auto` -> wandb or none; and check that what is asked for can be had without asking anybody.

    Raises:
        ConfigError: the package is missing, or wandb would ask for an account.
    """
    if report_to == "auto":
        report_to = "wandb" if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_SWEEP_ID") else "none"
    for name in names_of(report_to):
        if name == "wandb":
            need("wandb", "wandb", "--report_to=wandb")
            refuse_to_ask()
        elif importlib.util.find_spec(name) is None:
            raise ConfigError(f"--report_to={name}: the package is not installed; pip install {name}")
    return report_to


def names_of(report_to: str) -> list[str]:
    """The trackers of a value of `--report_to`."""
    return [name for part in report_to.split(",") if (name := part.strip()) != "none"]


def make_tracker(report_to: str, run_dir: Path) -> Tracker:
    """The run folder's record, and whatever else was asked for (already resolved)."""
    own: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: WandbTracker("-".join(split_name(run_dir)), run_dir),
        "tensorboard": lambda: TensorboardTracker(run_dir),
    }
    further = [own[name]() if name in own else AccelerateTracker(name, run_dir) for name in names_of(report_to)]
    return Trackers(JsonlTracker(run_dir / "metrics.jsonl"), *further)
