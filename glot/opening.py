"""Encoders from what there is: a run folder, a `.pth` with its configuration beside it, or flags that name a pooler."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from glot.encoder import SentenceEncoder
from glot.errors import CheckpointError, ConfigError, lookup
from glot.given import path_of, whole_number, yes_or_no
from glot.locate import expand_user
from glot.nn.poolers import build_pooler
from glot.prompts import Prompts
from glot.settings.choices import BACKBONE_DTYPES, short_name
from glot.settings.config import RunConfig, read_saved
from glot.states.backbone import Backbone, BackboneSource, pick_device
from glot.states.tokens import find_prompts, find_source, load_options, settle_dtype, windows_key
from glot.training.checkpoint import find_trained_backbone
from glot.training.released import load_pooler, resolve_checkpoint


def load_encoder(
    checkpoint: str | Path,
    max_length: int | None = None,
    device: str = "auto",
    backbone_dtype: str | None = None,
    trust_pooler: bool = False,
    trust_remote_code: bool = False,
    backbone: str | Path | None = None,
) -> SentenceEncoder:
    """The trained pooler of a run folder (or of a `.pth` with its configuration beside it) on its backbone.

    Args:
        checkpoint: `runs/<name>`, or a file under `--save_dir`.
        max_length: tokens a text is cut to; default: as in training.
        device: as `--device`.
        backbone_dtype: float32, float16, bfloat16, autocast or auto; default: as in training.
        trust_pooler: run a pooler's own code that the checkpoint carries, whoever wrote it.
        trust_remote_code: run code that comes with the backbone; what the checkpoint says of it does not count.
        backbone: where the backbone is now, if it was moved; its files must be those of the training.

    Raises:
        CheckpointError: no such checkpoint, or the backbone on this machine is not the one it was trained on.
        ConfigError: the backbone cannot be found.
    """
    path, trust_pooler = path_of(checkpoint, "checkpoint"), yes_or_no(trust_pooler, "trust_pooler")
    trust_remote_code = yes_or_no(trust_remote_code, "trust_remote_code")
    saved = read_saved(path)
    if saved is None:
        raise CheckpointError(f"{path}: nothing beside it says which backbone it belongs to; use main.py --task=mteb --checkpoint_path")
    config = RunConfig.from_dict(saved["flags"])
    trained_length = None if config.backbone.adaptive_length else config.backbone.max_length
    if max_length is not None:
        max_length = whole_number(max_length, "max_length")
    precision = backbone_dtype or config.backbone.backbone_dtype
    lookup(dict.fromkeys(BACKBONE_DTYPES), precision, "backbone_dtype")
    asked = config.with_values(device=device, backbone_dtype=precision, trust_remote_code=trust_remote_code)
    asked = with_folder(asked, backbone)
    asked, _ = settle_dtype(asked, _find_states(asked, path)[0], pick_device(device))
    opened = _open_backbone(asked, path, trained_length if max_length is None else max_length)
    pooler = load_pooler(path, config, opened.hidden_size, trust_pooler, len(opened.layers))
    prompts = Prompts.from_dict(saved["resolved"].get("prompts"))
    return SentenceEncoder(opened, pooler, path.stem, pooler_settings(config), prompts)


def with_folder(config: RunConfig, backbone: str | Path | None) -> RunConfig:
    """The configuration of a run with the folder that its backbone is in now; None = where it was.

    Raises:
        ConfigError: no such folder.
    """
    if backbone is None:
        return config
    if not expand_user(str(backbone)).is_dir():
        raise ConfigError(f"--backbone={backbone}: no such folder; name the one that the run's backbone is in now")
    return config.with_values(model_name_or_path=str(backbone))


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
    if path is not None:
        config, remarks = resolve_checkpoint(path, config)
    config, picked = settle_dtype(config, _find_states(config, path)[0], pick_device(config.backbone.device))
    remarks += picked
    backbone = _open_backbone(config, path, None) if shared is None else _check_shared(config, path, shared)
    if shared is None and config.mteb.mteb_max_length > backbone.max_length:
        wanted, limit = config.mteb.mteb_max_length, backbone.max_length
        remarks.append(f"--mteb_max_length={wanted}: {backbone.source.name} reads at most {limit} tokens")
    backbone.check_length(config.mteb.mteb_max_length, flag="--mteb_max_length")
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
            raise CheckpointError(
                f"--checkpoint_path={checkpoint}: was trained on hidden state {trained_layer}, not {layer}; "
                "leave --hidden_layer out, and score checkpoints of other layers apart"
            )
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
