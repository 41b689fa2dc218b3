"""The run folder of one pooler on MTEB: its configuration, table and result."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from glot.encoder import SentenceEncoder
from glot.encoders import Opened, SharedPass
from glot.errors import ConfigError
from glot.integrations.mteb import VERSION, MtebModel, MtebScore
from glot.nn.poolers import own_codes
from glot.nn.poolers.pairs import ALL_CLASSES
from glot.progress import say
from glot.report.mteb_tables import write_mteb_tables
from glot.settings.config import RunConfig, read_saved, versions
from glot.states.backbone import count_weights
from glot.training.checkpoint import write_config
from glot.training.code import code_hash
from glot.training.folders import create_run_folder
from glot.training.result import Result, make_mteb_result
from glot.training.result_file import write_result
from glot.training.run import folder_of
from glot.training.tracking import make_tracker, names_of
from glot.trust import remember_trusted


class MtebRun:
    """One pooler on MTEB, from its folder to its result.

    Args:
        opened: the encoder and its configuration.
        folder: of the run.
        report_to: the tracker.
        shared: the pass that it shares with other poolers; None = the encoder reads texts itself.

    Examples:
        >>> run = MtebRun(opened, folder, "none", None)
        >>> run.add(evaluate_task(run.model, task, cache, {"batch_size": 64, "show_progress_bar": False}))
        >>> result = run.close({"evaluate": 3.2})
    """

    def __init__(self, opened: Opened, folder: Path, report_to: str, shared: SharedPass | None) -> None:
        self.encoder, self.config, self.notes = opened
        self.folder, self.scores = folder, list[MtebScore]()
        self.revision = _revision(self.encoder, self.config.pooler.pooling_method)
        self.model = MtebModel(self.encoder, self.revision, {"max_length": self.encoder.backbone.max_length}, shared)
        self._tracker = make_tracker(report_to, folder)
        self._tracker.start(self.config.to_dict())

    def add(self, score: MtebScore) -> None:
        """A task's score: said, logged, and in the table."""
        self.scores.append(score)
        say(f"{self.encoder.name}, {score.task}: {score.error if score.score is None else f'{score.metric} {score.score:.4f}'}")
        self._tracker.log({score.task: math.nan if score.score is None else score.score}, len(self.scores))
        write_mteb_tables(self.folder, self.scores, self.config.backbone.model_name_or_path, self.config.pooler.pooling_method)

    def close(self, seconds: dict[str, float]) -> Result:
        """Write the result."""
        found = {score.task: score.score for score in self.scores if score.score is not None}
        if found:  # what the release's sweep file maximises
            self._tracker.log({"metrics/acc": math.fsum(found.values()) / len(found)}, len(self.scores))
        failed = {score.task: score.error for score in self.scores if score.error}
        backbone = self.encoder.backbone
        result = make_mteb_result(self.config, found, failed, self.revision, seconds, backbone.device)
        result["backbone"] = {"identity": backbone.source.identity, "weights": count_weights(backbone.source), **backbone.facts}
        result |= {"notes": self.notes, "versions": {**versions(), "mteb": VERSION}, "run_dir": str(self.folder)}
        write_result(self.folder, result)
        self._tracker.summarise(result)
        self._tracker.close()
        return result


def _revision(encoder: SentenceEncoder, pooler: str) -> str:
    """16 hex digits over everything that a score depends on: the encoder, versions of libraries and this package's code."""
    kind = ALL_CLASSES.get(pooler)  # None of a user's own, whose code is in the encoder's fingerprint
    code = code_hash("glot.encoder", *([] if kind is None else [kind.__module__]))
    facts = [encoder.fingerprint(), {**versions(), "mteb": VERSION}, code]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def open_mteb_runs(opened: list[Opened], tasks: list[Any], report_to: str, shared: SharedPass | None) -> list[MtebRun]:
    """A run with its folder for each encoder. With several, `--run_name` gets the pooler's name behind it.

    Raises:
        ConfigError: wandb, which has one run per process, and several encoders.
    """
    if len(opened) > 1 and "wandb" in names_of(report_to):
        raise ConfigError("--report_to=wandb: takes one pooler per process, and several are scored; use none, or score them apart")
    runs, names = [], list[str]()
    for one in opened:
        encoder, config = one.encoder, one.config
        for note in one.notes:
            say(note)
        name = _name_of(one, len(opened) > 1)
        taken = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(f"{name}-{taken + 1}" if name in names else name)
        name = names[-1]
        folder = create_run_folder(Path(config.output.output_dir), name, config.output.overwrite)
        source = encoder.backbone.source
        facts: dict[str, Any] = {"hidden_size": encoder.backbone.hidden_size, "backbone": source.identity, "folder": folder_of(source)}
        facts |= _own_sources(config)
        write_config(folder, config, {**facts, "prompts": encoder.prompts.to_dict(), "data": [task.metadata.name for task in tasks]})
        runs.append(MtebRun(one, folder, report_to, shared))
    return runs


def _own_sources(config: RunConfig) -> dict[str, Any]:
    """The user's own code that a run takes, as a run folder carries it."""
    saved = None if config.mteb.checkpoint is None else read_saved(config.mteb.checkpoint)
    codes = own_codes(config.pooler, config.graph, None if saved is None else saved["resolved"].get("sources"))
    for name, code in codes.items():
        remember_trusted(code.sha256, name)
    return {"sources": {name: code.source for name, code in codes.items() if code.module is None}} if codes else {}


def _name_of(opened: Opened, is_one_of_several: bool) -> str:
    """The name of a run's folder, before it is told apart from others of the same command."""
    encoder, config = opened.encoder, opened.config
    asked, checkpoint = config.output.run_name, config.mteb.checkpoint
    if asked is None:
        return f"mteb-{encoder.name}-{encoder.fingerprint()[:8]}"
    if not is_one_of_several:
        return asked
    own = [] if checkpoint is None else [checkpoint.resolve().name.removesuffix(".pth")]
    return "-".join([asked, encoder.name, *own])
