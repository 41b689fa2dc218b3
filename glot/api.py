"""What a Python program uses: train, load, predict, encode; stores and studies as values."""

import inspect
import json
import logging
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glot.encoder import SentenceEncoder
from glot.errors import ConfigError, library_door, reason
from glot.given import path_of, unboxed
from glot.opening import open_encoder
from glot.predictor import Predictor, Texts, load_any
from glot.progress import warn
from glot.settings.commands import parse_plain_pooler
from glot.settings.flags import parse
from glot.settings.index import KIND_WORDS, flag_facts, kinds
from glot.states.store.reader import StoredTokens, open_store_folder
from glot.training.folders import RESULT
from glot.training.result import Result, summarise
from glot.training.result_file import peek_result

if TYPE_CHECKING:
    import pandas as pd

ONLY_COMMAND_LINE = ("dry_run", "estimate", "print_config")
"""Flags that print and train nothing."""


class Run:
    """A finished run, or several of them that differ in their seeds: scores, folder, and the trained model.

    Args:
        result: the object of its `result.json`.
        opening: options of `load` with which the trained model is loaded.

    Attributes:
        result: the same.
        folder: where it lies, as an absolute path.
        runs: one Run per seed; of a single run itself.

    Examples:
        >>> run = glot.train(task="cola", pooler="glot", tau=0.6)
        >>> run.metrics, run.predict(["The book was read."])
    """

    def __init__(self, result: Result, **opening: Any) -> None:
        self.result, self.folder, self._opening = result, Path(result["run_dir"]).absolute(), opening
        self.runs = [Run(one, **opening) for one in result["runs"]] if "runs" in result else [self]

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self.metrics})"

    @property
    def metrics(self) -> dict[str, float | None]:
        """Of the selected epoch on the reported split (of the first seed); of MTEB the score of each task."""
        first = self.runs[0].result
        return first["scores"] if "scores" in first else first["best"]["metrics"]

    @property
    def summary(self) -> dict[str, dict[str, float | int | None]]:
        """Mean, standard deviation and number of seeds of each metric."""
        return summarise([{"best": {"metrics": run.metrics}} for run in self.runs])

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The trained model (of the first seed), loaded on first use."""
        return load_any(self.runs[0].folder, **self._opening)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in order."""
        return self._predictor.classes

    def predict(self, texts: Texts | str, **options: Any) -> Any:
        """See `Predictor.predict`."""
        return self._predictor.predict(texts, **options)

    def predict_proba(self, texts: Texts | str, **options: Any) -> np.ndarray:
        """See `Predictor.predict_proba`."""
        return self._predictor.predict_proba(texts, **options)

    def encode(self, texts: Any, **options: Any) -> np.ndarray:
        """See `SentenceEncoder.encode`."""
        return self.encoder.encode(texts, **options)

    def similarity(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """See `SentenceEncoder.similarity`."""
        return self.encoder.similarity(first, second)

    @property
    def _predictor(self) -> Predictor:
        return _labelled(self.encoder)


def train(task: str | None = None, *, pooler: Any = None, seeds: int | str | Iterable[int] | None = None, **flags: Any) -> Run:
    """What `main.py` does: encode once, train a pooler, score it, write the run folder.

    Args:
        task: as `--task`; with `train_file` alone it is `custom`.
        pooler: as `--pooling_method`: a name, `file.py:Name`, `package.module:Name`, or the class itself.
        seeds: several runs on one store: `range(5)`, `[0, 1]` or `"0..4"`.
        flags: every flag of `main.py` under its name; lists where a flag takes a comma list.

    Raises:
        ConfigError: every mistake in the flags, as on the command line. Other errors of `glot.errors` as they come.
    """
    from glot.recipes import choose_recipe  # late: it imports everything that a run needs

    if task is None and flags.get("train_file") is not None:
        task = "custom"
    if pooler is not None and flags.get("pooling_method") is not None:
        raise ConfigError("pooler and pooling_method are the same; leave one out")
    for name in ONLY_COMMAND_LINE:
        if flags.get(name):
            raise ConfigError(f"{name}: trains nothing and gives no run; use it on the command line, as main.py --{name}")
    given = {"task": task, "pooling_method": pooler, "seeds": seeds, **flags}
    told = {name: value for name, value in given.items() if value is not None and name not in ONLY_COMMAND_LINE}
    parsed = parse([f"--{name}={as_word(name, value)}" for name, value in told.items()], "glot.train")
    if parsed.inert:
        logging.getLogger("glot").warning("no effect in this run: %s", ", ".join(parsed.inert))
    trusted = {name: getattr(parsed.config.backbone, name) for name in ("trust_pooler", "trust_remote_code")}  # by this call
    return Run(choose_recipe(parsed.config)(parsed.config), **trusted)


def as_word(name: str, value: Any) -> str:
    """A Python value as the command line writes it."""
    value = unboxed(value)
    if hasattr(value, "columns") and hasattr(value, "shape"):
        raise ConfigError(f"{name}: takes the name of a file, not a {type(value).__name__}; write the table to one, e.g. by to_csv")
    if isinstance(value, bool):
        facts = flag_facts().get(name)
        if facts is not None and kinds()[name] is not bool and "1" not in (*facts.choices, *facts.aliases):
            raise ConfigError(f"{name}={value}: must be {KIND_WORDS[kinds()[name]]}; it is no switch")
        return str(int(value))
    if isinstance(value, dict):
        with library_door(ConfigError, lambda error: f"{name}: {reason(error)}; give numbers, words and lists"):
            return json.dumps(value)
    if isinstance(value, type) or inspect.isfunction(value):
        return _name_of_object(value)
    if isinstance(value, bytes | set | frozenset):
        raise ConfigError(f"{name}: takes a value or a list of them, not {type(value).__name__}; write a list, which has an order")
    if isinstance(value, Iterable) and not isinstance(value, str):
        words = [as_word(name, one) for one in value]
        split = next((word for word in words if "," in word), None) if len(words) > 1 else None
        if split is not None:
            raise ConfigError(f"{name}: {split!r} holds a comma, which stands between values; choose a name without one")
        return ",".join(words)
    if not isinstance(value, str | int | float | os.PathLike):
        raise ConfigError(f"{name}: takes {KIND_WORDS[kinds().get(name, str)]}, not {type(value).__name__}")
    return str(value)


def _name_of_object(value: Any) -> str:
    """The flag's word for a class or function: a pooler of this package by its name, a user's by its file.

    Raises:
        ConfigError: it stands in no file (a notebook), or inside a function.
    """
    from glot.nn.own import hand_over  # late: it imports torch
    from glot.nn.poolers.pairs import ALL_CLASSES

    known = next((name for name, kind in ALL_CLASSES.items() if kind is value), None)
    if known is not None:
        return known
    try:
        file = inspect.getsourcefile(value)
    except TypeError:
        file = None
    if file is None or not Path(file).is_file() or "." in value.__qualname__:
        raise ConfigError(f"{value.__qualname__}: must stand at the top of a file, so that a run can be loaded again; save it as one")
    name = f"{file}:{value.__qualname__}"
    hand_over(name, value)
    return name


def load(checkpoint: str | Path, **options: Any) -> SentenceEncoder:
    """The trained model of a run folder (a `Predictor` where it was trained on labels) or of a `.pth` with its configuration beside it.

    Args:
        checkpoint: `runs/<name>`, or a file under `--save_dir`.
        options: max_length, device, backbone_dtype; default: as in training. backbone: where the backbone is now, if it was moved.

    Raises:
        CheckpointError, ConfigError: see `glot.opening.load_encoder`.
    """
    return load_any(checkpoint, **options)


OPENING = ("max_length", "device", "backbone_dtype", "trust_pooler", "trust_remote_code", "backbone")
"""Options of `load`, which `predict` and `encode` take too where they load a model."""


def _take_opening(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `OPENING`, which are taken out of the options."""
    return {name: options.pop(name) for name in OPENING if name in options}


def _model_of(run: "str | Path | Run | SentenceEncoder", opening: dict[str, Any]) -> SentenceEncoder:
    """The trained model of a run, of its folder, or the one that was loaded before.

    Raises:
        ConfigError: options of loading for a model that is loaded.
    """
    if isinstance(run, SentenceEncoder) and opening:
        raise ConfigError(f"{', '.join(opening)}: {run.name} is loaded already; give it to glot.load")
    if isinstance(run, SentenceEncoder):
        return run
    if isinstance(run, Run):
        return load_any(run.runs[0].folder, **opening) if opening else run.encoder
    return load_any(run, **opening)


def predict(run: str | Path | Run | Predictor, texts: Texts | str, **options: Any) -> Any:
    """The class of each text (or the cosine of each pair) by a run, its folder or what `load` gave.

    Args:
        run: the run.
        texts: see `Predictor.predict`.
        options: of `Predictor.predict`, and of `load`.

    Raises:
        ConfigError: it was trained without labels.
    """
    model = _model_of(run, _take_opening(options))
    return _labelled(model).predict(texts, **options)


def _labelled(model: SentenceEncoder) -> Predictor:
    if not isinstance(model, Predictor):
        raise ConfigError(f"{model.name}: was trained without labels; use encode and similarity")
    return model


def encode(
    texts: Any,
    run: str | Path | Run | SentenceEncoder | None = None,
    *,
    pooler: str | None = None,
    model: str | None = None,
    **options: Any,
) -> np.ndarray:
    """Vectors (S, D) of texts by a run folder, or by a pooler without training on a backbone.

    Args:
        texts: one, or several.
        run: a run, its folder, or what `load` gave; None = `pooler` on `model`.
        pooler: one without weights (of another the weights are random, and a warning says so); None = mean.
        model: as `--model_name_or_path`; None = minilm.
        options: of `SentenceEncoder.encode`, and of `load`.

    Raises:
        ConfigError: options that contradict each other, or that the pooler or the backbone does not take.
    """
    opening = _take_opening(options)
    if run is not None:
        own = run.name if isinstance(run, SentenceEncoder) else run
        for what, named in (("pooler", pooler), ("backbone", model)):
            if named is not None:
                raise ConfigError(f"{own} has its own {what} ({named} was named too); leave one out")
        return _model_of(run, opening).encode(texts, **options)
    if "backbone" in opening:
        raise ConfigError("backbone: is for a run; without one, model says which backbone")
    given = {"model_name_or_path": model or "minilm", "pooling_method": pooler or "mean", **opening}
    config = parse_plain_pooler([f"--{name}={as_word(name, value)}" for name, value in given.items() if value is not None])
    encoder = open_encoder(config)[0]
    if any(True for _ in encoder.pooler.parameters()):
        warn(f"pooler={pooler}: there is no run, so its weights are random")
    return encoder.encode(texts, **options)


def open_store(folder: str | Path) -> StoredTokens:
    """A store of token states: `len(store)`, `store[3]` -> (n, d) float32, `store.gather(rows)` -> TokenBatch.

    Raises:
        StoreError: there is no complete store.
    """
    return open_store_folder(path_of(folder, "open_store"))


def read_study(folder: str | Path) -> "pd.DataFrame":
    """The runs of a study, one row each: arm, grid values, tuned values, seed, metrics of the selected epoch, folder, error.

    Raises:
        DataError: no study there.
        CheckpointError: the result of a run is gone or damaged.
    """
    import pandas as pd

    from glot.study.report import load_study

    rows = []
    for cell in load_study(path_of(folder, "read_study"))["cells"]:
        for run in cell["runs"]:
            row = {"arm": cell["arm"], **cell["grid"], **cell["tuned"]["values"], "seed": run["seed"]}
            if run["run_dir"] is not None:
                row |= Run(peek_result(Path(run["run_dir"]) / RESULT)).metrics
            rows.append({**row, "folder": run["run_dir"], "error": run.get("error")})
    return pd.DataFrame(rows)
