"""Several encoders on one backbone: texts pass the backbone once, and every pooler takes their states."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from glot.encoder import SentenceEncoder, read_states
from glot.errors import ConfigError
from glot.opening import named, open_encoder
from glot.progress import counter
from glot.settings.config import RunConfig, read_saved, versions
from glot.settings.facts import WEIGHTS
from glot.settings.flags import brought
from glot.states.by_text import TextStates
from glot.states.store import StoreKey
from glot.states.tokens import windows_key
from glot.types import TokenBatch

READ_AT_ONCE = 1 << 13
"""Stored tokens that are pooled together."""


class Opened(NamedTuple):
    """An encoder, the configuration of its pooler, and remarks on what was assumed."""

    encoder: SentenceEncoder
    config: RunConfig
    notes: list[str]


def pooler_configs(config: RunConfig) -> list[RunConfig]:
    """A configuration for each pooler that `--task=mteb` scores: those of `--checkpoint_path`, then `--mteb_poolers`.

    Flags that a checkpoint brings are its own. Without either, the pooler is `--pooling_method`.
    """
    alone = {"mteb_poolers": None}
    configs = [config.with_values(**alone, checkpoint_path=str(path), **_brought(path)) for path in config.mteb.checkpoints]
    names = [name.strip() for name in (config.mteb.mteb_poolers or "").split(",") if name.strip()]
    unset = RunConfig().to_dict()
    plain = {name: unset[name] for name in (*brought(WEIGHTS), "data_seed")} if configs else {}  # not what the first checkpoint brought
    configs += [config.with_values(**alone, **{**plain, "checkpoint_path": "standard", "pooling_method": name}) for name in names]
    return configs or [config]


def _brought(path: Path) -> dict[str, object]:
    """What a checkpoint's weights belong to; nothing of a bare `.pth`."""
    saved = read_saved(path)
    if saved is None:
        return {}
    trained = RunConfig.from_dict(saved["flags"])
    flags = trained.to_dict()
    return {name: flags[name] for name in brought(WEIGHTS) if name in saved["flags"]} | {"data_seed": trained.data_seed}


def open_encoders(config: RunConfig) -> list[Opened]:
    """The encoders that `--task=mteb` scores, all on the same backbone.

    Raises:
        CheckpointError, ConfigError: see `open_encoder`; or they do not share backbone, layer and prompts.
    """
    configs = pooler_configs(config)
    first = Opened(*open_encoder(configs[0]))
    opened = [first]
    for part in configs[1:]:
        other = Opened(*open_encoder(part, first.encoder.backbone))
        if other.encoder.prompts != first.encoder.prompts:
            raise ConfigError(f"{named(part)}: has other prompts than {named(configs[0])}; score them apart")
        opened.append(other)
    if config.mteb.mteb_store:
        for one in opened:
            one.encoder.settings["store_dtype"] = config.store.store_dtype  # states are rounded to it
    return opened


def open_text_states(config: RunConfig, encoder: SentenceEncoder) -> TextStates:
    """The token states of `--mteb_store=1`."""
    backbone = encoder.backbone
    length = backbone.max_length
    dtypes = backbone.dtype, config.store.store_dtype  # as it was settled: `auto` is another one elsewhere
    key = StoreKey(backbone.source.identity, backbone.layer, length, *dtypes, "", windows=windows_key(config.backbone))
    return TextStates(Path(config.store.store_dir), key, backbone, versions())


class SharedPass:
    """Vectors of several encoders from one pass of their common backbone.

    Vectors of distinct texts are kept until `forget`, so that the second encoder finds what the first one's pass has made.

    Args:
        encoders: on one backbone.
        states: token states on disk; None = the backbone reads every text.

    Examples:
        >>> shared = SharedPass([mean, glot])
        >>> shared.encode(mean, ["a text"]), shared.encode(glot, ["a text"])
    """

    def __init__(self, encoders: Sequence[SentenceEncoder], states: TextStates | None = None) -> None:
        self._encoders, self._states = list(encoders), states
        self.forget()

    def forget(self) -> None:
        """Drop all vectors."""
        self._rows: dict[tuple[str, str], int] = {}
        self._vectors: list[list[np.ndarray]] = [[] for _ in self._encoders]

    def encode(
        self, encoder: SentenceEncoder, texts: Sequence[str], batch_size: int = 32, show_progress_bar: bool = False, prompt: str = ""
    ) -> np.ndarray:
        """Vectors of length one of S texts by one of the encoders: (S, D) float32.

        Raises:
            StateError, StoreError: see `SentenceEncoder.encode`, `TextStates.add`.
        """
        missing = list(dict.fromkeys(text for text in texts if (prompt, text) not in self._rows))
        if missing:
            self._add(missing, prompt, batch_size, show_progress_bar)
        parts = self._vectors[self._encoders.index(encoder)]
        if len(parts) > 1:
            parts[:] = [np.concatenate(parts)]
        found = torch.from_numpy(parts[0][[self._rows[prompt, text] for text in texts]])
        return F.normalize(found, dim=1).numpy()

    def _add(self, texts: list[str], prompt: str, batch_size: int, verbose: bool) -> None:
        """Vectors of new texts by every encoder."""
        first = self._encoders[0]
        exclude = first.prompts.exclude
        if self._states is not None:
            self._states.add(texts, prompt, exclude, verbose)
        fresh = [np.empty((len(texts), encoder.dim), dtype=np.float32) for encoder in self._encoders]
        device = first.backbone.device
        with torch.inference_mode(), counter("encode", "text", len(texts), verbose) as bar:
            for rows, batch in self._stored(texts, prompt, exclude) if self._states is not None else self._live(texts, prompt, batch_size):
                states = batch.with_tokens(batch.tokens.float()).to(device)
                for own, encoder in zip(fresh, self._encoders, strict=True):
                    own[rows] = encoder.pooler(states).float().cpu().numpy()
                bar.update(len(rows))
        start = len(self._rows)
        self._rows |= {(prompt, text): start + place for place, text in enumerate(texts)}
        for known, own in zip(self._vectors, fresh, strict=True):
            known.append(own)

    def _live(self, texts: list[str], prompt: str, batch_size: int) -> Iterator[tuple[np.ndarray, TokenBatch]]:
        first = self._encoders[0]
        for batch in first.batches(texts, prompt, batch_size):
            yield batch.rows, read_states(first.backbone, batch)

    def _stored(self, texts: list[str], prompt: str, exclude: bool) -> Iterator[tuple[np.ndarray, TokenBatch]]:
        """Texts alike in length, about `READ_AT_ONCE` tokens at a time."""
        assert self._states is not None
        lengths = self._states.lengths(texts, prompt, exclude)
        order = np.argsort(-lengths, kind="stable")
        ends = np.cumsum(lengths[order])
        for rows in np.split(order, np.flatnonzero(np.diff((ends - 1) // READ_AT_ONCE)) + 1):
            yield rows, self._states.gather([texts[row] for row in rows], prompt, exclude)
