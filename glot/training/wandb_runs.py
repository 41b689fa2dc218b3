"""Runs of wandb: numbers, summary, group and artifact of a run, tables and figures of a study. The only door to wandb.

Nothing here asks for an account: without WANDB_MODE or a login, wandb is an error that says so.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glot.errors import ConfigError, library_door, reason
from glot.progress import warn
from glot.training.checkpoint import BACKBONE, CONFIG, WEIGHTS
from glot.training.folders import RESULT

PROJECT = "GLOT"
ARTIFACT = (CONFIG, WEIGHTS, RESULT, BACKBONE)
"""Files and folders of a run folder that `glot.load` reads."""


def split_name(run_dir: Path) -> list[str]:
    """The names of a run: its folder's, behind that of the whole where it is one seed or one fold of it."""
    folder, names = run_dir.absolute(), list[str]()
    while re.fullmatch(r"(seed|fold)-\d+", folder.name):
        names.insert(0, folder.name)
        folder = folder.parent
    return [folder.name, *names]


class WandbTracker:
    """A wandb run in project GLOT."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._folder = name, folder

    def start(self, config: dict[str, object]) -> None:
        """Open the run; in a folder that has one, the same again."""
        import wandb

        earlier = sorted((self._folder / "wandb").glob("*run-*-*"))
        known: dict[str, Any] = {"id": earlier[-1].name.rpartition("-")[2], "resume": "allow"} if earlier else {}

        # Said again: wandb reads its variables once per process, at a look for a login or at the first run.
        mode: Any = os.environ.get("WANDB_MODE")
        whole, *parts = split_name(self._folder)
        known["group"] = os.environ.get("WANDB_RUN_GROUP") or (whole if parts else None)
        project = None if os.environ.get("WANDB_SWEEP_ID") else os.environ.get("WANDB_PROJECT", PROJECT)  # a sweep has its own
        self._run: Any = wandb.init(mode=mode, project=project, name=self._name, dir=self._folder, config=config, **known)

    def go_on(self, lines: int, step: int) -> None:
        """Nothing to do: wandb takes no step twice."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Send numbers."""
        self._run.log(values, step=step)

    def summarise(self, result: dict[str, Any]) -> None:
        """Scores, floors, seconds and sizes into the run's summary; where `WANDB_LOG_MODEL` asks for it, the pooler as an artifact."""
        self._run.summary.update(flat_numbers(result))
        if os.environ.get("WANDB_LOG_MODEL", "false").lower() in ("end", "checkpoint", "true", "1"):
            self._log_artifact(Path(result["run_dir"]))

    def _log_artifact(self, folder: Path) -> None:
        """The result is written before: what fails here is said, and the run is a finished one all the same."""
        try:
            door = library_door(ConfigError, lambda error: f"WANDB_LOG_MODEL: {folder} is not an artifact ({reason(error)})")
            with door:
                self._run.log_artifact(_artifact(self._name, folder))
        except ConfigError as error:
            warn(f"{error}; the run folder is complete")

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def flat_numbers(result: dict[str, Any]) -> dict[str, float]:
    """The numbers of a result object as `best/accuracy`, `floor/accuracy`, `seconds/train`, ...; without its history."""
    parts = {"best": (result.get("best") or {}).get("metrics"), "last": (result.get("last") or {}).get("metrics")}
    parts |= {name: result.get(name) for name in ("floor", "scores", "seconds", "rows")}
    found = {f"{part}/{name}": value for part, values in parts.items() for name, value in (values or {}).items()}
    found |= {"best/epoch": (result.get("best") or {}).get("epoch"), "trainable_params": result.get("trainable_params")}
    return {name: value for name, value in found.items() if value is not None}


def _artifact(name: str, folder: Path) -> Any:
    """What `glot.load` needs of a run folder, as a model of wandb."""
    import wandb

    artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type="model")
    for path in (folder / part for part in ARTIFACT):
        if path.is_dir():
            artifact.add_dir(str(path), name=path.name)
        elif path.is_file():
            artifact.add_file(str(path))
    return artifact


@contextmanager
def in_group(name: str) -> Iterator[None]:
    """Runs of wandb that are started inside, in other processes too, are one group of its pages; a group that the user named stays."""
    known = os.environ.get("WANDB_RUN_GROUP")
    os.environ["WANDB_RUN_GROUP"] = known or name
    try:
        yield
    finally:
        del os.environ["WANDB_RUN_GROUP"]
        os.environ |= {} if known is None else {"WANDB_RUN_GROUP": known}


def track_study(name: str, folder: Path, tables: dict[str, tuple[list[str], list[list[str]]]], pictures: list[Path]) -> None:
    """A run of wandb that holds the tables and figures of a study, in the group of its runs.

    Args:
        name: of the study.
        folder: where wandb writes.
        tables: name -> header and rows.
        pictures: of the report.
    """
    import wandb

    tracker = WandbTracker(f"{name}-report", folder)
    with in_group(name):
        tracker.start({"study": name})
    logged: dict[str, Any] = {f"tables/{key}": wandb.Table(columns=header, data=rows) for key, (header, rows) in tables.items()}
    tracker.log(logged | {f"figures/{path.stem}": wandb.Image(str(path)) for path in pictures}, 0)
    tracker.close()


def refuse_to_ask() -> None:
    """Refuse wandb where it would ask for an account.

    Raises:
        ConfigError: it would.
    """
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    import wandb

    if not wandb.login(prompt=False):
        raise ConfigError("--report_to=wandb: nobody is logged in; set WANDB_MODE=offline, or WANDB_API_KEY, or run `wandb login`")
