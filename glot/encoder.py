"""Texts to sentence vectors, with a pooler that is trained or needs no training."""

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from glot.backbone import Backbone, find_backbone, pick_device
from glot.checkpoint import BACKBONE
from glot.config import RunConfig, read_saved
from glot.errors import CheckpointError, ConfigError
from glot.poolers import build_pooler
from glot.progress import counter, say
from glot.released import load_pooler
from glot.types import TokenBatch

WINDOW = 1 << 16
"""Texts that are tokenised and sorted by length at a time."""


class SentenceEncoder:
    """A backbone and a pooler: texts -> (S, D) float32.

    Args:
        backbone: loaded, on its device.
        pooler: TokenBatch -> (B, D).
        name: what it is called in reports.
    """

    def __init__(self, backbone: Backbone, pooler: nn.Module, name: str = "sentence encoder") -> None:
        self.backbone, self.name = backbone, name
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
            ConfigError: a device that is not there, or a batch size below 1.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: must be at least 1")
        named = [pick_device(name) for name in dict.fromkeys(devices or ())]
        replicas = [self._replica(device) for device in named or [self.backbone.device]]
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        with counter("encode", "text", len(texts), show_progress_bar) as bar, ThreadPoolExecutor(len(replicas)) as pool:
            batches, lock = self._batches(texts, batch_size), Lock()

            def work(replica: tuple[Backbone, nn.Module]) -> None:
                while True:
                    with lock:
                        batch = next(batches, None)
                    if batch is None:
                        return
                    rows, ids = batch
                    vectors[rows] = _embed(*replica, ids)
                    bar.update(len(rows))

            list(pool.map(work, replicas))
        return torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1).numpy() if normalize else vectors

    def fingerprint(self) -> str:
        """16 hex digits over everything that a vector depends on: backbone, layer, length, precision, pooler and its weights."""
        backbone = self.backbone
        rule = getattr(self.pooler, "rule", None)
        facts = [
            backbone.source.identity,
            backbone.layer,
            backbone.max_length,
            str(backbone.model.dtype),
            type(self.pooler).__name__,
            str(rule),
        ]
        facts += [str(getattr(self.pooler, "last", "")), str(self.dim)]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for name, tensor in sorted(self.pooler.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @staticmethod
    def similarity(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Cosines of all pairs: (S, D), (T, D) -> (S, T) float32."""
        one, other = (F.normalize(torch.as_tensor(vectors, dtype=torch.float32), dim=1) for vectors in (first, second))
        return (one @ other.T).numpy()

    def _batches(self, texts: Sequence[str], size: int) -> Iterator[tuple[np.ndarray, list[list[int]]]]:
        """Rows and token ids of texts that are alike in length, from long to short inside each window."""
        for start in range(0, len(texts), WINDOW):
            ids = [tokens or self._end_token() for tokens in self.backbone.tokenise(list(texts[start : start + WINDOW]))]
            order = np.argsort([-len(tokens) for tokens in ids], kind="stable")
            for rows in np.split(order, range(size, len(order), size)):
                yield start + rows, [ids[row] for row in rows]

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
def _embed(backbone: Backbone, pooler: nn.Module, ids: list[list[int]]) -> np.ndarray:
    batch = backbone.encode(ids)
    return pooler(TokenBatch(batch.tokens.float(), batch.ptr)).float().cpu().numpy()


def load_encoder(
    checkpoint: str | Path, max_length: int | None = None, device: str = "auto", backbone_dtype: str | None = None
) -> SentenceEncoder:
    """The trained pooler of a run folder (or of a `.pth` with its configuration beside it) on its backbone.

    Args:
        checkpoint: `runs/<name>`, or a file under `--save_dir`.
        max_length: tokens a text is cut to; default: as in training.
        device: as `--device`.
        backbone_dtype: float32, float16 or bfloat16; default: as in training.

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
    asked = config.with_values(device=device, backbone_dtype=backbone_dtype or config.backbone.backbone_dtype)
    backbone = _open_backbone(asked, path, max_length or trained_length)
    return SentenceEncoder(backbone, load_pooler(path, config, backbone.hidden_size)[0], path.stem)


def open_encoder(config: RunConfig) -> tuple[SentenceEncoder, list[str]]:
    """The encoder that `--task=mteb` scores: `--checkpoint_path` or a pooler as it is, texts cut to `--mteb_max_length`; and remarks.

    Raises:
        CheckpointError, ConfigError: see `load_encoder`.
    """
    path, remarks = config.mteb.checkpoint, []
    backbone = _open_backbone(config, path, None)
    if config.mteb.mteb_max_length > backbone.max_length:
        remarks.append(
            f"--mteb_max_length={config.mteb.mteb_max_length}: {backbone.source.name} reads at most {backbone.max_length} tokens"
        )
    backbone.max_length = min(config.mteb.mteb_max_length, backbone.max_length)
    if path is None:
        torch.manual_seed(config.train.seed)
        last = config.pooler.decoder_cls_last_token and backbone.source.is_decoder
        pooler = build_pooler(replace(config.pooler, decoder_cls_last_token=last), config.graph, backbone.hidden_size, config.data_seed)
        if any(True for _ in pooler.parameters()):
            method = config.pooler.pooling_method
            remarks.append(f"--pooling_method={method}: no --checkpoint_path, so its weights are random (--seed={config.train.seed})")
    else:
        pooler, assumed = load_pooler(path, config, backbone.hidden_size)
        remarks += assumed
    return SentenceEncoder(backbone, pooler, f"{Path(backbone.source.name).name}-{config.pooler.pooling_method}"), remarks


def _open_backbone(config: RunConfig, checkpoint: Path | None, max_length: int | None) -> Backbone:
    """The backbone of a configuration, or the one that a run fine-tuned; refused where a run was trained on another one."""
    tuned = None if checkpoint is None else checkpoint / BACKBONE
    fine_tuned = tuned is not None and tuned.is_dir()
    source = find_backbone(str(tuned) if fine_tuned else config.backbone.model_name_or_path, config.backbone.trust_remote_code)
    saved = None if checkpoint is None or fine_tuned else read_saved(checkpoint)
    trained_on = source.identity if saved is None else saved["resolved"]["backbone"]
    if trained_on != source.identity:
        raise CheckpointError(f"{checkpoint}: was trained on another {source.name} ({trained_on} there, {source.identity} here)")
    layer = source.resolve_layer(config.backbone.hidden_layer)
    return Backbone(source, max_length, config.backbone.backbone_dtype, layer, pick_device(config.backbone.device))
