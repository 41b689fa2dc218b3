"""A trained run on new texts: classes, probabilities or scores, and vectors."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from glot.data.custom import split_names
from glot.data.labels import LabelFacts
from glot.data.tables import TABLES
from glot.encoder import SentenceEncoder
from glot.errors import CheckpointError, ConfigError, StateError
from glot.given import list_of, path_of, whole_number, yes_or_no
from glot.opening import load_encoder
from glot.progress import counter
from glot.prompts import UsedPrompts
from glot.settings.config import RunConfig, read_config
from glot.states.store.layout import DTYPES
from glot.training.checkpoint import load_run, task_of
from glot.training.result_file import CONFIG
from glot.types import TokenBatch

Texts = Sequence[str] | Sequence[tuple[str, str]]


class Predictor(SentenceEncoder):
    """An encoder with the head that was trained on it.

    Texts go the way of the run's evaluation: same prompt, and token states rounded as its store rounds them.

    Args:
        encoder: of the same run.
        head: vectors -> scores.
        labels: what the scores mean.
        columns: names of the run's text columns.
        used: what stood before the texts in training.
        precision: of the run's stored states; None = they were not stored.

    Examples:
        >>> run = glot.load("runs/my-run")
        >>> run.predict(["a text", "another"])
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        head: nn.Module,
        labels: LabelFacts,
        columns: tuple[str, ...],
        used: UsedPrompts,
        precision: torch.dtype | None,
    ) -> None:
        super().__init__(encoder.backbone, encoder.pooler, encoder.name, encoder.settings, encoder.prompts)
        self.head, self.labels, self.columns = head.eval(), labels, columns
        self._used, self._precision = used, precision

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the scores; empty where pairs get one score."""
        return self.labels.names

    @torch.inference_mode()
    def scores(self, texts: Texts | str, batch_size: int = 32, show_progress_bar: bool = False) -> np.ndarray:
        """The head's outputs for S texts or pairs: (S, C) for classes, else scores (S,); of a single one (C,) or a number.

        Raises:
            ConfigError: texts where the run takes pairs, or pairs where it takes texts.
            StateError: see `encode`.
        """
        rows, is_single = self._rows(texts)
        if not rows:
            return np.empty((0, len(self.classes)) if self.classes else 0, dtype=np.float32)
        if self.pooler.sides > 1:
            found = self._score_pairs(rows, batch_size, show_progress_bar)
            return found[0] if is_single else found
        distinct = {text: place for place, text in enumerate(dict.fromkeys(text for row in rows for text in row))}
        vectors = torch.from_numpy(self.pool(list(distinct), self._used.query, batch_size, show_progress_bar, precision=self._precision))
        sides = [vectors[[distinct[row[side]] for row in rows]] for side in range(len(self.columns))]
        found = self.head(*sides).float().numpy()
        return found[0] if is_single else found

    def _score_pairs(self, rows: list[tuple[str, ...]], batch_size: int, show_progress_bar: bool) -> np.ndarray:
        """The head's outputs where the pooler takes both texts of a pair.

        Raises:
            StateError: the backbone fails on a text, which is named by its pair.
        """
        batch_size = whole_number(batch_size, "batch_size")
        found: list[torch.Tensor] = []
        with counter("predict", "pair", len(rows), show_progress_bar) as bar:
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                try:
                    sides = [self.states([row[side] for row in part]) for side in range(len(self.columns))]
                except StateError as error:
                    raise StateError(error.problem, where="" if error.place is None else f"pair {start + error.place}") from error
                found.append(self.head(self.pooler(*sides).float().cpu()).float())
                bar.update(len(part))
        return torch.cat(found).numpy()

    def fingerprint(self) -> str:
        """16 hex digits over everything that an answer depends on: what a vector does, prompt, precision, classes, the head's weights."""
        facts = [super().fingerprint(), self._used.query, str(self._precision), self.columns, self.classes]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for name, tensor in sorted(self.head.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def before(self) -> str:
        """The prompt that stands before each text."""
        return self._used.query

    def states(self, texts: list[str]) -> TokenBatch:
        """Token states of texts, rounded as the run's store rounds them."""
        batch = super().states(texts)
        return batch if self._precision is None else batch.with_tokens(batch.tokens.to(self._precision).float())

    def predict(self, texts: Texts | str, batch_size: int = 32, show_progress_bar: bool = False) -> Any:
        """The name of each text's class, a list; scores (S,) where the run was trained on scores. A single text gets a single answer."""
        found = self.scores(texts, batch_size, show_progress_bar)
        if not self.classes:
            return float(found) if found.ndim == 0 else found
        return self.classes[int(found.argmax())] if found.ndim == 1 else [self.classes[place] for place in found.argmax(1)]

    def predict_proba(self, texts: Texts | str, batch_size: int = 32, show_progress_bar: bool = False) -> np.ndarray:
        """Probability of each class in the order of `classes`: (S, C), or (C,) of a single text.

        Raises:
            ConfigError: the run was trained on scores, which have no probabilities.
        """
        if not self.classes:
            raise ConfigError(f"{self.name}: was trained on scores, which have no probabilities; use predict")
        return torch.from_numpy(self.scores(texts, batch_size, show_progress_bar)).softmax(-1).numpy()

    def _rows(self, texts: Texts | str) -> tuple[list[tuple[str, ...]], bool]:
        """Rows of one or two texts, and whether there was a single one."""
        wanted = len(self.columns)
        is_pair = isinstance(texts, tuple) and len(texts) == 2 and all(isinstance(text, str) for text in texts)
        is_single = isinstance(texts, str) if wanted == 1 else is_pair
        given: list[Any] = [texts] if is_single else list_of(texts, self.name)
        rows = [tuple(row) if isinstance(row, tuple | list | np.ndarray) else (row,) for row in given]
        wrong = next((row for row in rows if len(row) != wanted or not all(isinstance(text, str) for text in row)), None)
        if wrong is not None:
            what = "texts" if wanted == 1 else f"pairs of texts ({', '.join(self.columns)})"
            raise ConfigError(f"{self.name}: takes {what}, got {str(wrong)[:60]}")
        return rows, is_single


def text_columns(config: RunConfig) -> tuple[str, ...]:
    """Names of the text columns that a run was trained on."""
    if config.data.task in TABLES:
        return TABLES[config.data.task].columns
    return split_names(config.files.text_columns) if config.data.task == "custom" else ("text",)


def load_predictor(checkpoint: str | Path, **options: Any) -> Predictor:
    """A run folder with its head; `options` are those of `load_encoder`.

    Raises:
        CheckpointError: no finished run, or one that was trained without labels.
        ConfigError: see `load_encoder`.
    """
    path = path_of(checkpoint, "checkpoint")
    model, config, resolved = load_run(path, yes_or_no(options.get("trust_pooler", False), "trust_pooler"))
    labels = task_of(config, resolved).labels
    if not labels.names and config.data.task == "embedding":
        raise CheckpointError(f"{path}: was trained to compare texts, without labels; use encode")
    encoder = load_encoder(path, **options)
    precision = DTYPES[config.store.store_dtype] if config.store.precompute_hidden_states else None
    return Predictor(encoder, model.head, labels, text_columns(config), encoder.prompts.for_task(config.data.task), precision)


def load_any(checkpoint: str | Path, **options: Any) -> SentenceEncoder:
    """What a checkpoint holds: a `Predictor` of a run that was trained on labels, else a `SentenceEncoder`.

    Raises:
        CheckpointError, ConfigError: see `load_encoder`.
    """
    path = path_of(checkpoint, "checkpoint")
    labelled = path.is_dir() and read_config(path / CONFIG)["flags"]["task"] != "embedding"
    return load_predictor(path, **options) if labelled else load_encoder(path, **options)
