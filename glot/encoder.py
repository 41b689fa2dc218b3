"""Texts to sentence vectors, with a pooler that is trained or needs no training."""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from glot.backbone import DTYPES, SPREAD, Backbone, find_backbone, pick_device
from glot.checkpoint import BACKBONE
from glot.config import RunConfig, read_saved
from glot.errors import CheckpointError, ConfigError, lookup
from glot.places import join
from glot.poolers import build_pooler
from glot.progress import counter, say
from glot.released import load_pooler, settle_checkpoint
from glot.types import TokenBatch

WINDOW = 1 << 16
"""Texts that are tokenised and sorted by length at a time."""
POOLED_TOKENS = 1 << 11
"""Batches of short texts are pooled together up to about this many tokens: a pooler's small operations cost as much for one as for all."""


class SentenceEncoder:
    """A backbone and a pooler: texts -> (S, D) float32.

    Args:
        backbone: loaded, on its device.
        pooler: TokenBatch -> (B, D).
        name: what it is called in reports.
        settings: flags of the pooler and its graph, which its weights do not tell (for `fingerprint`).
    """

    def __init__(
        self, backbone: Backbone, pooler: nn.Module, name: str = "sentence encoder", settings: dict[str, Any] | None = None
    ) -> None:
        self.backbone, self.name, self.settings = backbone, name, settings or {}
        self.pooler = pooler.to(backbone.device).eval()
        self.dim: int = pooler.out_dim
        self._replicas: dict[torch.device, tuple[Backbone, nn.Module]] = {backbone.device: (backbone, self.pooler)}
        self._empty_said = False

    def encode(
        self,
        texts: Sequence[str],
        batch_size: int = 32,
        normalize: bool = True,
        show_progress_bar: bool = False,
        devices: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Vectors of S texts in their order: (S, D) float32.

        Args:
            texts: cut to the backbone's `max_length` tokens; a text without any token is read as a single end token.
            batch_size: texts of similar length that pass the backbone together.
            normalize: give every vector length one; without it they are as the pooler makes them.
            show_progress_bar: on stderr, in texts.
            devices: share the batches among these (names as in `--device`); default: where the backbone is.

        Raises:
            ConfigError: a single text instead of several, a device that is not there, or a batch size below 1.
        """
        if isinstance(texts, str):
            raise ConfigError(f"encode takes a list of texts, got the text {texts[:40]!r}; put it into a list")
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be at least 1")
        named = [pick_device(name) for name in dict.fromkeys(devices or ())]
        replicas = [self._replica(device) for device in named or [self.backbone.device]]
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        with counter("encode", "text", len(texts), show_progress_bar) as bar:
            together = POOLED_TOKENS if len(replicas) == 1 else 0  # several devices share the texts batch by batch
            batches, lock = self._batches(texts, batch_size, together), Lock()

            def take_batches(replica: tuple[Backbone, nn.Module]) -> None:
                """What each device does: fetch the next batch that nobody has taken, until there is none."""
                while True:
                    with lock:
                        batch = next(batches, None)
                    if batch is None:
                        return
                    rows, groups = batch
                    vectors[rows] = _embed(*replica, groups)
                    bar.update(len(rows))

            if len(replicas) == 1:  # in this thread: another one would open a second team of computing threads, and the two fight
                take_batches(replicas[0])
            else:
                with ThreadPoolExecutor(len(replicas)) as pool:
                    list(pool.map(take_batches, replicas))
        return F.normalize(torch.from_numpy(vectors), dim=1).numpy() if normalize else vectors

    def fingerprint(self) -> str:
        """16 hex digits over everything that a vector depends on: backbone, layer, length, precision, pooler and its weights."""
        backbone = self.backbone
        facts = [backbone.source.identity, backbone.layer, backbone.max_length, str(backbone.model.dtype), type(self.pooler).__name__]
        facts += [getattr(self.pooler, "last", None), self.settings]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for name, tensor in sorted(self.pooler.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @staticmethod
    def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Cosines of all pairs: (S, D), (T, D) -> (S, T) float32."""
        one, other = (F.normalize(torch.as_tensor(vectors, dtype=torch.float32), dim=1) for vectors in (first, second))
        return (one @ other.T).numpy()

    def _batches(self, texts: Sequence[str], size: int, together: int) -> Iterator[tuple[np.ndarray, list[list[list[int]]]]]:
        """Rows that are pooled `together` (in tokens), and their ids in batches alike in length, from long to short in each window."""
        for start in range(0, len(texts), WINDOW):
            ids = [tokens or self._end_token() for tokens in self.backbone.tokenise(list(texts[start : start + WINDOW]))]
            order = np.argsort([-len(tokens) for tokens in ids], kind="stable")
            first, groups, tokens = 0, [], 0
            for end in range(size, len(order) + size, size):
                groups.append([ids[row] for row in order[end - size : end]])
                tokens += sum(map(len, groups[-1]))
                if tokens >= together or end >= len(order):
                    yield start + order[first:end], groups
                    first, groups, tokens = end, [], 0

    def _end_token(self) -> list[int]:
        if not self._empty_said:
            say(f"{self.name}: a text without tokens is read as one end token")
            self._empty_said = True
        tokenizer = self.backbone.tokenizer
        known = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
        return [next(token for token in known if token is not None)]

    def _replica(self, device: torch.device) -> tuple[Backbone, nn.Module]:
        if device not in self._replicas:
            self._replicas[device] = (self.backbone.copy_to(device), copy.deepcopy(self.pooler).to(device))
        return self._replicas[device]


@torch.inference_mode()
def _embed(backbone: Backbone, pooler: nn.Module, groups: list[list[list[int]]]) -> np.ndarray:
    batches = [backbone.encode(ids) for ids in groups]
    tokens = join([batch.tokens for batch in batches])
    lengths = torch.tensor([len(text) for ids in groups for text in ids])
    return pooler(TokenBatch.from_lengths(tokens.float(), lengths)).float().cpu().numpy()


def load_encoder(
    checkpoint: str | Path, max_length: int | None = None, device: str = "auto", backbone_dtype: str | None = None
) -> SentenceEncoder:
    """The trained pooler of a run folder (or of a `.pth` with its configuration beside it) on its backbone.

    Args:
        checkpoint: `runs/<name>`, or a file under `--save_dir`.
        max_length: tokens a text is cut to; default: as in training.
        device: as `--device`.
        backbone_dtype: float32, float16, bfloat16 or autocast; default: as in training.

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
    lookup(DTYPES, precision, "backbone_dtype")
    asked = config.with_values(device=device, backbone_dtype=precision)
    backbone = _open_backbone(asked, path, trained_length if max_length is None else max_length)
    return SentenceEncoder(backbone, load_pooler(path, config, backbone.hidden_size), path.stem, pooler_settings(config))


def pooler_settings(config: RunConfig) -> dict[str, Any]:
    """Flags that decide what a pooler computes from its weights."""
    return {**asdict(config.pooler), **asdict(config.graph), "data_seed": config.data_seed}


def open_encoder(config: RunConfig) -> tuple[SentenceEncoder, RunConfig, list[str]]:
    """The encoder that `--task=mteb` scores: `--checkpoint_path` or a pooler as it is, texts cut to `--mteb_max_length`.

    Returns:
        the encoder; the configuration of the pooler that it holds; remarks on what was assumed.

    Raises:
        CheckpointError, ConfigError: see `load_encoder`.
    """
    path, remarks = config.mteb.checkpoint, []
    if path is not None:
        config, remarks = settle_checkpoint(path, config)
    backbone = _open_backbone(config, path, None)
    if config.mteb.mteb_max_length > backbone.max_length:
        wanted, limit = config.mteb.mteb_max_length, backbone.max_length
        remarks.append(f"--mteb_max_length={wanted}: {backbone.source.name} reads at most {limit} tokens")
    backbone.max_length = min(config.mteb.mteb_max_length, backbone.max_length)
    if path is None:
        config = config.with_values(decoder_cls_last_token=config.pooler.decoder_cls_last_token and backbone.source.is_decoder)
        torch.manual_seed(config.train.seed)
        pooler = build_pooler(config.pooler, config.graph, backbone.hidden_size, config.data_seed)
        if any(True for _ in pooler.parameters()):
            method = config.pooler.pooling_method
            remarks.append(f"--pooling_method={method}: no --checkpoint_path, so its weights are random (--seed={config.train.seed})")
    else:
        pooler = load_pooler(path, config, backbone.hidden_size)
    name = f"{Path(config.backbone.model_name_or_path).name}-{config.pooler.pooling_method}"
    return SentenceEncoder(backbone, pooler, name, pooler_settings(config)), config, remarks


def _open_backbone(config: RunConfig, checkpoint: Path | None, max_length: int | None) -> Backbone:
    """The backbone of a configuration, or the one that a run fine-tuned.

    Raises:
        CheckpointError: the checkpoint was trained on another backbone or layer, or its fine-tuned backbone is gone.
    """
    saved = None if checkpoint is None else read_saved(checkpoint)
    tuned = saved is not None and saved["flags"].get("finetune_backbone")
    name = config.backbone.model_name_or_path
    if tuned and checkpoint is not None:
        run = checkpoint if checkpoint.is_dir() else Path(str(saved.get("run", checkpoint.parent)))
        if not (run / BACKBONE).is_dir():
            raise CheckpointError(f"{checkpoint}: was trained together with its backbone, which is not in {run}; give the run's folder")
        name = str(run / BACKBONE)
    source = find_backbone(name, config.backbone.trust_remote_code)
    layer = source.resolve_layer(config.backbone.hidden_layer)
    if saved is not None:
        trained_on, trained_layer = saved["resolved"]["backbone"], source.resolve_layer(saved["flags"]["hidden_layer"])
        if not tuned and trained_on != source.identity:
            raise CheckpointError(f"{checkpoint}: was trained on another {source.name} ({trained_on} there, {source.identity} here)")
        if layer != trained_layer:
            raise CheckpointError(f"--hidden_layer={layer}: {checkpoint} was trained on hidden state {trained_layer}; leave the flag out")
    device = config.backbone.device
    return Backbone(source, max_length, config.backbone.backbone_dtype, layer, pick_device(device), device == SPREAD)
