"""Texts to sentence vectors, with a pooler that is trained or needs no training."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from glot.errors import ConfigError, StateError, library_door, reason
from glot.given import list_of_texts, whole_number, yes_or_no
from glot.nn.own import OwnPooler
from glot.nn.places import join
from glot.nn.pooler import Pooler
from glot.progress import counter
from glot.prompts import Prompts
from glot.states.backbone import Backbone, pick_device
from glot.types import TokenBatch

WINDOW = 1 << 16
"""Texts that are tokenised and sorted by length at a time."""
POOLED_TOKENS = 1 << 11
"""Batches of short texts are pooled together up to about this many tokens: a pooler's small operations cost as much for one as for all."""


class Pooled(NamedTuple):
    """Texts that are pooled together: rows, tokens of each to leave out, and ids in groups that pass the backbone together."""

    rows: np.ndarray
    skips: list[int]
    groups: list[list[list[int]]]


class SentenceEncoder:
    """A backbone and a pooler: texts -> (S, D) float32.

    Args:
        backbone: loaded, on its device.
        pooler: TokenBatch -> (B, D).
        name: what it is called in reports.
        settings: flags of the pooler and its graph, which its weights do not tell (for `fingerprint`).
        prompts: what may be put before a text, by name.

    Examples:
        >>> encoder = SentenceEncoder(backbone, MeanPooler(backbone.hidden_size))
        >>> vectors = encoder.encode(["one text", "another"])
    """

    def __init__(
        self,
        backbone: Backbone,
        pooler: Pooler,
        name: str = "sentence encoder",
        settings: dict[str, Any] | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        self.backbone, self.name, self.settings = backbone, name, settings or {}
        self.prompts = prompts or Prompts()
        self.pooler = pooler.to(backbone.device).eval()
        self.dim = pooler.out_dim
        self._replicas: dict[torch.device, tuple[Backbone, nn.Module]] = {backbone.device: (backbone, self.pooler)}

    def encode(
        self,
        texts: Sequence[str] | str,
        batch_size: int = 32,
        normalize: bool = True,
        show_progress_bar: bool = False,
        devices: Sequence[str] | str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Vectors of S texts in their order: (S, D) float32; of a single text (D,).

        Args:
            texts: cut to the backbone's `max_length` tokens; a text without any token is read as a single end token.
            batch_size: texts of similar length that pass the backbone together.
            normalize: give every vector length one; without it they are as the pooler makes them.
            show_progress_bar: on stderr, in texts.
            devices: one, or several that share the batches (names as in `--device`); default: where the backbone is.
            prompt_name: name of the prompt that is put before each text; default: the model's default, if it has one.
            prompt: the prompt itself, in place of a name.

        Raises:
            ConfigError: a device that is not there, a batch size below 1, no such prompt, or a prompt and a name of one.
            StateError: the backbone fails on a text or gives numbers that are not finite; the text is named by its place.
        """
        if not isinstance(prompt, str | None):
            raise ConfigError(f"prompt={prompt!r}: must be a text")
        if prompt is not None and prompt_name is not None:
            raise ConfigError(f"prompt_name={prompt_name!r}: prompt says what stands before each text; leave one out")
        before = self.prompts.named(prompt_name) if prompt is None else prompt
        many = [texts] if isinstance(texts, str) else list_of_texts(texts, self.name)
        vectors = self.pool(many, before, batch_size, show_progress_bar, devices)
        vectors = F.normalize(torch.from_numpy(vectors), dim=1).numpy() if yes_or_no(normalize, "normalize") else vectors
        return vectors[0] if isinstance(texts, str) else vectors

    def pool(
        self,
        texts: Sequence[str],
        prompt: str = "",
        batch_size: int = 32,
        show_progress_bar: bool = False,
        devices: Sequence[str] | str | None = None,
        precision: torch.dtype | None = None,
    ) -> np.ndarray:
        """Vectors of S texts as the pooler makes them: (S, D) float32.

        Args:
            texts: see `encode`.
            prompt: what is put before each text.
            batch_size: see `encode`.
            show_progress_bar: see `encode`.
            devices: see `encode`.
            precision: round the token states to it first, as a store does; None = as the backbone gives them.

        Raises:
            ConfigError, StateError: see `encode`.
        """
        batch_size = whole_number(batch_size, "batch_size")
        self.check_vectors()
        asked = [devices] if isinstance(devices, str) else devices or ()
        named = list(dict.fromkeys(pick_device(name) for name in asked))
        replicas = [self._replica(device) for device in named or [self.backbone.device]]
        together = POOLED_TOKENS if len(replicas) == 1 else 0  # several devices share the texts batch by batch
        with counter("encode", "text", len(texts), show_progress_bar) as bar:
            return self._fill(len(texts), self.batches(texts, prompt, batch_size, together), replicas, bar.update, precision)

    def _fill(
        self,
        count: int,
        batches: Iterator["Pooled"],
        replicas: list[tuple[Backbone, nn.Module]],
        advance: Callable[[int], object],
        precision: torch.dtype | None,
    ) -> np.ndarray:
        """Vectors of all batches, (count, D) float32; each device takes the next batch that nobody has taken.

        Raises:
            StateError: the text is named by its place.
        """
        vectors, lock = np.empty((count, self.dim), dtype=np.float32), Lock()

        def take_batches(replica: tuple[Backbone, nn.Module]) -> None:
            """What each device does until there is no batch left."""
            while True:
                with lock:
                    batch = next(batches, None)
                if batch is None:
                    return
                vectors[batch.rows] = _embed(*replica, batch, precision)
                advance(len(batch.rows))

        if len(replicas) == 1:  # in the calling thread: a worker thread would start a second OpenMP team and oversubscribe the cores
            take_batches(replicas[0])
        else:
            with ThreadPoolExecutor(len(replicas)) as pool:
                list(pool.map(take_batches, replicas))
        return vectors

    @property
    def before(self) -> str:
        """The prompt that stands before each text where none is named."""
        return self.prompts.named(None)

    def states(self, texts: list[str]) -> TokenBatch:
        """Token states of texts in one batch, as the pooler takes them: float32 (N, d)."""
        ids, skips = self.backbone.tokeniser.tokenise(texts, self.backbone.max_length, self.before, self.prompts.exclude)
        batch = self.backbone.encode(ids, skips)
        return batch.with_tokens(batch.tokens.float())

    def check_vectors(self) -> None:
        """Refuse a pooler that has no vector of a single text.

        Raises:
            ConfigError: it scores pairs.
        """
        if self.pooler.sides > 1:
            raise ConfigError(f"{self.name}: its pooler scores pairs and gives no sentence vector; use predict")

    def fingerprint(self) -> str:
        """16 hex digits over everything that a vector depends on: backbone, layer, length, precision, pooler and its weights."""
        backbone = self.backbone
        facts = [backbone.source.identity, backbone.layer, backbone.max_length, backbone.dtype, type(self.pooler).__name__]
        facts += [backbone.windows] if backbone.windows else []
        facts += [getattr(self.pooler, "last", None), self.settings]
        facts += [self.pooler.code.sha256] if isinstance(self.pooler, OwnPooler) else []
        facts += [self.prompts.to_dict()] if self.prompts.texts else []
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in sorted(self.pooler.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @staticmethod
    def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Cosines of all pairs: (S, D), (T, D) -> (S, T) float32; a single vector (D,) counts as one row.

        Raises:
            ConfigError: vectors of different widths, or none.
        """

        def describe(error: Exception) -> str:
            return f"similarity: takes two arrays of vectors of one width ({reason(error)})"

        with library_door(ConfigError, describe):
            rows = (torch.atleast_2d(torch.as_tensor(vectors, dtype=torch.float32)) for vectors in (first, second))
            one, other = (F.normalize(vectors, dim=1) for vectors in rows)
            return (one @ other.T).numpy()

    def batches(self, texts: Sequence[str], prompt: str, size: int, together: int = POOLED_TOKENS) -> Iterator["Pooled"]:
        """Batches of `together` tokens in groups of `size` texts alike in length, each window from long to short."""
        backbone, exclude = self.backbone, self.prompts.exclude
        for start in range(0, len(texts), WINDOW):
            ids, skips = backbone.tokeniser.tokenise(texts[start : start + WINDOW], backbone.max_length, prompt, exclude)
            order = np.argsort([-len(tokens) for tokens in ids], kind="stable")
            first, groups, tokens = 0, [], 0
            for end in range(size, len(order) + size, size):
                groups.append([ids[row] for row in order[end - size : end]])
                tokens += sum(map(len, groups[-1]))
                if tokens >= together or end >= len(order):
                    yield Pooled(start + order[first:end], [skips[row] for row in order[first:end]], groups)
                    first, groups, tokens = end, [], 0

    def _replica(self, device: torch.device) -> tuple[Backbone, nn.Module]:
        if device not in self._replicas:
            self._replicas[device] = (self.backbone.copy_to(device), copy.deepcopy(self.pooler).to(device))
        return self._replicas[device]


def read_states(backbone: Backbone, batch: Pooled) -> TokenBatch:
    """The states (N, d) of the texts of all groups in order, in the backbone's precision.

    Raises:
        StateError: the text is named by its row.
    """
    found: list[TokenBatch] = []
    for ids in batch.groups:
        done = sum(map(len, found))
        try:
            found.append(backbone.encode(ids, batch.skips[done : done + len(ids)]))
        except StateError as error:
            raise StateError(error.problem, where="" if error.place is None else f"text {batch.rows[done + error.place]}") from error
    return TokenBatch.from_lengths(join([part.tokens for part in found]), torch.cat([part.lengths for part in found]))


@torch.inference_mode()
def _embed(backbone: Backbone, pooler: nn.Module, batch: Pooled, precision: torch.dtype | None) -> np.ndarray:
    """Vectors (B, D) of the texts of all groups in order."""
    states = read_states(backbone, batch)
    tokens = states.tokens if precision is None else states.tokens.to(precision)
    return pooler(states.with_tokens(tokens.float())).float().cpu().numpy()
