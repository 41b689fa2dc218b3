"""Texts to sentence vectors, with a pooler that is trained or needs no training."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from glot.errors import CheckpointError, ConfigError, StateError, lookup
from glot.given import list_of_texts
from glot.nn.own import OwnPooler
from glot.nn.places import join
from glot.nn.pooler import Pooler
from glot.nn.poolers import build_pooler
from glot.progress import counter
from glot.prompts import Prompts
from glot.settings.choices import BACKBONE_DTYPES, short_name
from glot.settings.config import RunConfig, read_saved
from glot.settings.effects import reads_several
from glot.states.backbone import Backbone, BackboneSource, pick_device
from glot.states.tokens import find_prompts, find_source, load_options, settle_dtype, windows_key
from glot.training.checkpoint import find_trained_backbone
from glot.training.released import load_pooler, resolve_checkpoint
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
        devices: Sequence[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> np.ndarray:
        """Vectors of S texts in their order: (S, D) float32; of a single text (D,).

        Args:
            texts: cut to the backbone's `max_length` tokens; a text without any token is read as a single end token.
            batch_size: texts of similar length that pass the backbone together.
            normalize: give every vector length one; without it they are as the pooler makes them.
            show_progress_bar: on stderr, in texts.
            devices: share the batches among these (names as in `--device`); default: where the backbone is.
            prompt_name: name of the prompt that is put before each text; default: the model's default, if it has one.
            prompt: the prompt itself, in place of a name.

        Raises:
            ConfigError: a device that is not there, a batch size below 1, or no such prompt.
            StateError: the backbone fails on a text or gives numbers that are not finite; the text is named by its place.
        """
        before = self.prompts.named(prompt_name) if prompt is None else prompt
        many = [texts] if isinstance(texts, str) else list_of_texts(texts, self.name)
        vectors = self.pool(many, before, batch_size, show_progress_bar, devices)
        vectors = F.normalize(torch.from_numpy(vectors), dim=1).numpy() if normalize else vectors
        return vectors[0] if isinstance(texts, str) else vectors

    def pool(
        self,
        texts: Sequence[str],
        prompt: str = "",
        batch_size: int = 32,
        show_progress_bar: bool = False,
        devices: Sequence[str] | None = None,
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
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be at least 1")
        self.check_vectors()
        named = [pick_device(name) for name in dict.fromkeys(devices or ())]
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
        facts = [backbone.source.identity, backbone.layer, backbone.max_length, str(backbone.model.dtype), type(self.pooler).__name__]
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
        """Cosines of all pairs: (S, D), (T, D) -> (S, T) float32; a single vector (D,) counts as one row."""
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


def load_encoder(
    checkpoint: str | Path,
    max_length: int | None = None,
    device: str = "auto",
    backbone_dtype: str | None = None,
    trust_pooler: bool = False,
    trust_remote_code: bool = False,
) -> SentenceEncoder:
    """The trained pooler of a run folder (or of a `.pth` with its configuration beside it) on its backbone.

    Args:
        checkpoint: `runs/<name>`, or a file under `--save_dir`.
        max_length: tokens a text is cut to; default: as in training.
        device: as `--device`.
        backbone_dtype: float32, float16, bfloat16, autocast or auto; default: as in training.
        trust_pooler: run a pooler's own code that the checkpoint carries, whoever wrote it.
        trust_remote_code: run code that comes with the backbone; what the checkpoint says of it does not count.

    Raises:
        CheckpointError: no such checkpoint, or the backbone on this machine is not the one it was trained on.
        ConfigError: the backbone cannot be found.
    """
    path = Path(checkpoint)
    saved = read_saved(path)
    if saved is None:
        raise CheckpointError(f"{path}: nothing beside it says which backbone it belongs to; use main.py --task=mteb --checkpoint_path")
    config = RunConfig.from_dict(saved["flags"])
    trained_length = None if config.backbone.adaptive_length else config.backbone.max_length
    if max_length is not None and max_length < 1:
        raise ConfigError(f"max_length={max_length}: must be at least 1")
    precision = backbone_dtype or config.backbone.backbone_dtype
    lookup(dict.fromkeys(BACKBONE_DTYPES), precision, "backbone_dtype")
    asked = config.with_values(device=device, backbone_dtype=precision, trust_remote_code=trust_remote_code)
    asked, _ = settle_dtype(asked, _find_states(asked, path)[0], pick_device(device))
    backbone = _open_backbone(asked, path, trained_length if max_length is None else max_length)
    pooler = load_pooler(path, config, backbone.hidden_size, trust_pooler, len(backbone.layers))
    prompts = Prompts.from_dict(saved["resolved"].get("prompts"))
    return SentenceEncoder(backbone, pooler, path.stem, pooler_settings(config), prompts)


def pooler_settings(config: RunConfig) -> dict[str, Any]:
    """Flags that decide what a pooler computes from its weights."""
    return {**asdict(config.pooler), **asdict(config.graph), "data_seed": config.data_seed}


def open_encoder(config: RunConfig, shared: Backbone | None = None) -> tuple[SentenceEncoder, RunConfig, list[str]]:
    """The encoder that `--task=mteb` scores: `--checkpoint_path` or a pooler as it is, texts cut to `--mteb_max_length`.

    Args:
        config: names one pooler.
        shared: a backbone that is loaded already, which the encoder must have too.

    Returns:
        the encoder; the configuration of the pooler that it holds; remarks on what was assumed.

    Raises:
        CheckpointError, ConfigError: see `load_encoder`.
    """
    path, remarks = config.mteb.checkpoint, list[str]()
    if path is None and reads_several(config):
        layer = config.backbone.hidden_layer
        raise ConfigError(f"--hidden_layer={layer}: several layers are standardised by training rows; name one, or give a trained run")
    if path is not None:
        config, remarks = resolve_checkpoint(path, config)
    config, picked = settle_dtype(config, _find_states(config, path)[0], pick_device(config.backbone.device))
    remarks += picked
    backbone = _open_backbone(config, path, None) if shared is None else _check_shared(config, path, shared)
    if shared is None and config.mteb.mteb_max_length > backbone.max_length:
        wanted, limit = config.mteb.mteb_max_length, backbone.max_length
        remarks.append(f"--mteb_max_length={wanted}: {backbone.source.name} reads at most {limit} tokens")
    backbone.max_length = min(config.mteb.mteb_max_length, backbone.max_length)
    if path is None:
        config = config.with_values(decoder_cls_last_token=config.pooler.decoder_cls_last_token and backbone.is_causal)
        torch.manual_seed(config.train.seed)
        pooler = build_pooler(config.pooler, config.graph, backbone.hidden_size, config.data_seed)
        if any(True for _ in pooler.parameters()):
            method = config.pooler.pooling_method
            remarks.append(f"--pooling_method={method}: no --checkpoint_path, so its weights are random (--seed={config.train.seed})")
    else:
        pooler = load_pooler(path, config, backbone.hidden_size, config.backbone.trust_pooler, len(backbone.layers))
    name = f"{Path(config.backbone.model_name_or_path).name}-{short_name(config.pooler.pooling_method)}"
    return SentenceEncoder(backbone, pooler, name, pooler_settings(config), _open_prompts(config, backbone)), config, remarks


def _open_prompts(config: RunConfig, backbone: Backbone) -> Prompts:
    """The prompts of `--task=mteb`: a checkpoint's own, unless the flags ask for others."""
    path = config.mteb.checkpoint
    saved = None if path is None else read_saved(path)
    if saved is not None:
        trained = RunConfig.from_dict(saved["flags"]).backbone.prompts
        kept = Prompts.from_dict(saved["resolved"].get("prompts"))
        if config.backbone.prompts == trained:
            return replace(kept, exclude=config.backbone.exclude_prompt)
    return find_prompts(config.backbone, backbone.source)


def _find_states(config: RunConfig, checkpoint: Path | None) -> tuple[BackboneSource, str]:
    """The backbone of a configuration, or the one that a run fine-tuned, and the layers that are read.

    Raises:
        CheckpointError: the checkpoint was trained on another backbone or layer, or its fine-tuned backbone is gone.
    """
    saved = None if checkpoint is None else read_saved(checkpoint)
    source = find_source(config.backbone) if checkpoint is None or saved is None else find_trained_backbone(checkpoint, saved, config)
    layer = ",".join(source.resolve_layers(config.backbone.hidden_layer))
    if saved is not None:
        trained_layer = ",".join(source.resolve_layers(saved["flags"]["hidden_layer"]))
        if layer != trained_layer:
            raise CheckpointError(f"--hidden_layer={layer}: {checkpoint} was trained on hidden state {trained_layer}; leave the flag out")
    return source, layer


def _open_backbone(config: RunConfig, checkpoint: Path | None, max_length: int | None) -> Backbone:
    """Load the backbone of a configuration, or the one that a run fine-tuned."""
    source, layer = _find_states(config, checkpoint)
    device, windows = config.backbone.device, windows_key(config.backbone)
    return Backbone(source, max_length, config.backbone.backbone_dtype, layer, pick_device(device), load_options(device), windows)


def _check_shared(config: RunConfig, checkpoint: Path | None, shared: Backbone) -> Backbone:
    """A backbone that is loaded already, if it gives the states that a configuration asks for.

    Raises:
        ConfigError: it does not.
    """
    try:
        source, layer = _find_states(config, checkpoint)
    except CheckpointError as error:
        raise ConfigError(f"{error}; poolers that are scored together need one backbone and layer") from error
    asked = (source.identity, layer, config.backbone.backbone_dtype, windows_key(config.backbone))
    known = (shared.source.identity, shared.layer, shared.dtype, shared.windows)
    differing = [
        name for name, one, other in zip(("files or adapter", "layer", "precision", "windows"), asked, known, strict=True) if one != other
    ]
    if differing:
        what = f"on a backbone of other {' and '.join(differing)} than the first pooler"
        raise ConfigError(f"{named(config)}: is {what} ({source.name}, layer {layer}, here); score them apart")
    return shared


def named(config: RunConfig) -> str:
    """The flag that names the pooler of a configuration of `--task=mteb`."""
    path = config.mteb.checkpoint
    return f"--pooling_method={config.pooler.pooling_method}" if path is None else f"--checkpoint_path={path}"
