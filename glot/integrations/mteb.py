"""MTEB: our encoder behind mteb's interface, tasks by name or benchmark with data from the hub or a local folder, and their scores.

Only this module imports mteb. It is itself imported inside functions, because importing mteb takes seconds.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mteb
import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta

from glot.encoder import SentenceEncoder
from glot.encoders import SharedPass
from glot.errors import ConfigError, DataError, GlotError, library_door, reason
from glot.hub import cache_where_unreachable
from glot.prompts import DOCUMENT_NAMES
from glot.states.backbone import file_sha256

LANGUAGE, LOCAL = "eng", "local"
LINKS = "data"
DIGITS = 6
"""Digits to which mteb rounds cached scores. New scores are rounded alike, so that both are equal."""
VERSION: str = mteb.__version__


class MtebScore(NamedTuple):
    """The outcome of one task: its main score (a fraction of 1) and the metric's name, or the first line of its error."""

    task: str
    category: str
    metric: str
    score: float | None
    error: str | None


class MtebModel(AbsEncoder):
    """mteb's encoder protocol over a SentenceEncoder. Vectors have length one, as in the release's evaluation.

    Args:
        encoder: of texts.
        revision: under which mteb remembers its results.
        settings: that mteb shows.
        shared: the pass that the encoder shares with others; None = it reads texts itself.

    Examples:
        >>> MtebModel(encoder, revision="1", settings={"pooling_method": "glot"})
    """

    _shared: SharedPass | None = None

    def __init__(self, encoder: SentenceEncoder, revision: str, settings: dict[str, Any], shared: SharedPass | None = None) -> None:
        self.encoder, self._shared = encoder, shared
        self.mteb_model_meta = ModelMeta(
            name=f"glot/{encoder.name}",
            revision=revision,
            experiment_kwargs=settings,
            loader=None,
            release_date=None,
            languages=["eng-Latn"],
            n_parameters=sum(p.numel() for module in (encoder.backbone.model, encoder.pooler) for p in module.parameters()),
            memory_usage_mb=None,
            max_tokens=encoder.backbone.max_length,
            embed_dim=encoder.dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            adapted_from=encoder.backbone.source.name,
        )

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any = None,
        prompt_type: Any = None,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        **_: Any,
    ) -> np.ndarray:
        """Vectors of all texts of a DataLoader: (S, D).

        The prompt is that of the task, of its type, or of the texts' role (query or document): the first that the model has. Without any of
        them there is no prompt.

        Source: mteb, `get_prompt_name`.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = self.encoder.prompts.first_of(prompt_names(task_metadata, prompt_type))
        if self._shared is not None:
            return self._shared.encode(self.encoder, texts, batch_size, show_progress_bar, prompt)
        return self.encoder.encode(texts, batch_size, show_progress_bar=show_progress_bar, prompt=prompt)


def prompt_names(task_metadata: Any, prompt_type: Any) -> list[str]:
    """Names under which a model may have a prompt for a task's texts, the most specific first."""
    role = getattr(prompt_type, "value", prompt_type)
    roles = [] if role is None else list(DOCUMENT_NAMES) if role in DOCUMENT_NAMES else [str(role)]
    kinds = [] if task_metadata is None else [str(task_metadata.name), str(task_metadata.type)]
    return [name for kind in kinds for name in (*(f"{kind}-{role}" for role in roles), kind)] + roles


def find_tasks(names: str, data_dir: Path | None, cache: Path) -> list[Any]:
    """The tasks of a benchmark (its name may contain a comma), or of a comma list of task names. Multilingual tasks run in English.

    A task whose data is under `data_dir` in mteb's own layout (`mteb/<name>/...`) reads it there, through a link under `cache`.

    Raises:
        ConfigError: no such task or benchmark.
    """
    benchmarks = {benchmark.name for benchmark in mteb.get_benchmarks()}
    if names in benchmarks:
        tasks = list(mteb.get_benchmark(names).tasks)
    else:
        asked = dict.fromkeys(name.strip() for name in names.split(","))
        tasks = [_english(name, names, benchmarks) for name in asked]
    for task in tasks:
        for part in [task, *getattr(task, "tasks", [])]:
            read_locally(part, data_dir, cache / LINKS)
    return tasks


def _english(name: str, names: str, benchmarks: set[str]) -> Any:
    try:
        return mteb.get_task(name, languages=[LANGUAGE], exclusive_language_filter=True)
    except KeyError as error:
        known = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)}
        close = difflib.get_close_matches(name, known | benchmarks, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "see mteb's list of tasks"
        raise ConfigError(f"--mteb_task={names}: {name!r} is no task and no benchmark of mteb {mteb.__version__}; {hint}") from error
    except ValueError as error:
        raise ConfigError(f"--mteb_task={name}: cannot be run in English ({_first_line(error)})") from error


def read_locally(task: Any, data_dir: Path | None, links: Path) -> None:
    """Point a task at its folder under `data_dir`, where there is one. The task's revision then holds a hash of the files.

    The task reads through a link whose name holds the hash, because the datasets library caches tables by the folder's name alone. Without
    the link it could return the rows of another folder, or outdated rows.
    """
    local = data_dir / task.metadata.dataset["path"] if data_dir is not None else None
    if local is None or not local.is_dir():
        return
    files = sorted(path for path in local.rglob("*") if path.is_file())
    listing = [[str(path.relative_to(local)), file_sha256(path)] for path in files]
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:12]
    link = links.absolute() / f"{local.name}-{digest}"
    links.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(local.resolve(), target_is_directory=True)
    where = {"path": str(link), "revision": f"{LOCAL}-{digest}"}
    task.metadata = task.metadata.model_copy(update={"dataset": {**task.metadata.dataset, **where}})


def _reason(error: object) -> str:
    """The first line of an error that mteb kept, as an exception or a string; the type's name where it is empty."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text or type(error).__name__


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")


@contextmanager
def kept_loaded(task: Any) -> Iterator[None]:
    """Keep a task's data while several models are evaluated on it; mteb would drop and read them again for each."""
    parts = [task, *getattr(task, "tasks", [])]
    for part in parts:
        part.unload_data = lambda: None
    try:
        yield
    finally:
        for part in parts:
            del part.unload_data
            if part.data_loaded:
                part.unload_data()


def evaluate_task(model: MtebModel, task: Any, cache: Path, options: dict[str, Any], anew: bool = False) -> MtebScore:
    """The score of a task, or why it failed. A finished one comes from `cache`, unless it is asked for anew.

    `options` are those of `encode`: batch_size, show_progress_bar.
    """
    revision = str(task.metadata.dataset.get("revision"))
    own = cache / revision if revision.startswith(LOCAL) else cache  # mteb's cache ignores the revision
    about = task.metadata.name, task.metadata.type, task.metadata.main_score
    try:
        with library_door(DataError, reason), cache_where_unreachable(revision.startswith(LOCAL)):
            score = _evaluate(model, task, own, options, anew)
    except GlotError as error:
        return MtebScore(*about, None, _first_line(error))
    return MtebScore(*about, round(score, DIGITS), None)


def _evaluate(model: MtebModel, task: Any, cache: Path, options: dict[str, Any], anew: bool) -> float:
    """The main score of one task.

    Raises:
        DataError: the task gave no number. Other errors of mteb are passed on.
    """
    found = mteb.evaluate(
        model,
        task,
        raise_error=False,
        encode_kwargs=options,
        cache=mteb.ResultCache(cache),
        overwrite_strategy="always" if anew else "only-missing",
        show_progress_bar=options["show_progress_bar"],
    )
    if not found.task_results:
        raise DataError(_reason(found.exceptions[0].exception) if found.exceptions else "no result")
    score = float(found.task_results[0].validate_and_filter_scores(task).get_score())
    if not math.isfinite(score):
        raise DataError("its score is no number (are all vectors equal?)")
    return score
