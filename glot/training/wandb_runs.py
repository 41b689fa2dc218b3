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
from glot.training.folders import RESULT
from glot.training.result_file import BACKBONE, CONFIG, WEIGHTS

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
        """Open the run; in a folder that has one, the same again.

        Raises:
            ConfigError: wandb cannot.
        """
        found = [match for path in (self._folder / "wandb").glob("*run-*") if (match := re.search(r"run-(\d{8}_\d{6})-(.+)$", path.name))]
        earlier = max(found, key=lambda match: match[1], default=None)
        known = {} if earlier is None else {"id": earlier[2], "resume": "allow"}
        whole, *parts = split_name(self._folder)
        self._run = open_wandb(self._name, self._folder, whole if parts else None, config, **known)

    def go_on(self, lines: int, step: int) -> None:
        """Nothing to do: wandb takes no step twice."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Send numbers."""
        self._run.log(values, step=step)

    def summarise(self, result: dict[str, Any]) -> None:
        """Scores, floors, seconds and sizes into the run's summary; where `WANDB_LOG_MODEL` asks for it, the pooler as an artifact.

        The result is written before: what fails here is said, and the run is a finished one all the same.
        """
        folder = Path(result["run_dir"])
        asked = os.environ.get("WANDB_LOG_MODEL", "false").lower() in ("end", "checkpoint", "true", "1")
        with _said(f"{folder}: is complete, but wandb did not take all of it"):
            self._run.summary.update(flat_numbers(result))
            if asked and (folder / WEIGHTS).is_file():
                self._run.log_artifact(_artifact(self._name, folder))

    def close(self, failed: bool = False) -> None:
        """Finish the run."""
        self._run.finish(exit_code=int(failed))


def open_wandb(name: str, folder: Path, group: str | None, config: dict[str, object], **known: Any) -> Any:
    """A new run of wandb, or a `known` one; several may be open in one process.

    Raises:
        ConfigError: wandb cannot.
    """
    import wandb

    # Said again: wandb reads its variables once per process, at a look for a login or at the first run.
    known |= {"mode": os.environ.get("WANDB_MODE"), "group": os.environ.get("WANDB_RUN_GROUP") or group}
    project = None if os.environ.get("WANDB_SWEEP_ID") else os.environ.get("WANDB_PROJECT", PROJECT)  # a sweep has its own
    with library_door(ConfigError, lambda error: f"--report_to=wandb: cannot be started ({reason(error)}); use none"):
        return wandb.init(project=project, name=name, dir=folder, config=config, reinit="create_new", **known)


@contextmanager
def _said(what: str) -> Iterator[None]:
    """What wandb cannot do inside is a warning."""
    try:
        with library_door(ConfigError, reason):
            yield
    except ConfigError as error:
        warn(f"{what} ({error})")


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
        os.environ.pop("WANDB_RUN_GROUP", None)
        os.environ |= {} if known is None else {"WANDB_RUN_GROUP": known}


def track_study(name: str, folder: Path, tables: dict[str, tuple[list[str], list[list[str]]]], pictures: list[Path]) -> None:
    """A run of wandb that holds the tables and figures of a study, in the group of its runs; a warning where wandb cannot.

    Args:
        name: of the study.
        folder: where wandb writes.
        tables: name -> header and rows.
        pictures: of the report.
    """
    with _said(f"{folder}: the report is complete, but wandb did not take it"):
        import wandb

        run = open_wandb(f"{name}-report", folder, name, {"study": name})
        logged: dict[str, Any] = {f"tables/{key}": wandb.Table(columns=header, data=rows) for key, (header, rows) in tables.items()}
        run.log(logged | {f"figures/{path.stem}": wandb.Image(str(path)) for path in pictures})
        run.finish()


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
