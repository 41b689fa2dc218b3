"""Checkpoints as the release knows them: a `.pth` with the state dict of a pooler, ours with a configuration beside it.

The run folder stays the truth; these files are for tools that expect the release's.
"""

import io
import json
import os
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from glot.errors import CheckpointError, ConfigError
from glot.nn.pooler import Pooler
from glot.nn.poolers import build_pooler
from glot.settings.choices import short_name
from glot.settings.config import RunConfig, read_config, read_saved
from glot.settings.sections import PoolerConfig
from glot.states.backbone import file_sha256
from glot.training.checkpoint import check_finite, load_run, own_sources
from glot.training.result_file import AGAIN, CONFIG, write_json


def released_name(config: RunConfig) -> Path:
    """Where a contrastive run's pooler goes: `--save_dir` and the name that the release's sweep file asks for."""
    pooler, train, contrastive = config.pooler, config.train, config.contrastive
    parts = (
        f"embedding_{config.backbone.model_name_or_path.replace('/', '_')}",
        f"{short_name(pooler.pooling_method)}_layers{pooler.num_layers}_{pooler.jk_mode}",
        f"lr{train.lr}_bs{train.batch_size}_ep{train.epochs}_len{config.backbone.max_length}",
        f"proj{contrastive.proj_dim}_sample{config.data.num_train_samples}",
    )
    return Path(contrastive.save_dir) / ("_".join(parts) + ".pth")


def load_pooler(checkpoint: Path, config: RunConfig, hidden_size: int, trust_pooler: bool = False, layers: int = 1) -> Pooler:
    """The pooler of a run folder or a `.pth` for tokens of width `hidden_size`; `config` is the checkpoint's own (`resolve_checkpoint`).

    `layers` is the number of hidden layers that stand side by side in that width.

    Raises:
        CheckpointError: not readable, or made for another width.
    """
    if checkpoint.is_dir():
        pooler = load_run(checkpoint, trust_pooler)[0].pooler
    else:
        state = read_release_head(checkpoint)
        check_finite(checkpoint, state)
        width = infer_pooler(state)[1] if not beside(checkpoint).is_file() else hidden_size
        saved = read_saved(checkpoint)
        if saved is not None and saved.get("sha256") not in (None, file_sha256(checkpoint)):
            raise CheckpointError(f"{checkpoint}: is not what was written beside {beside(checkpoint).name}; {AGAIN}")
        sources = None if saved is None else own_sources(checkpoint, saved, trust_pooler)
        built = build_pooler(config.pooler, config.graph, width, config.data_seed, sources, layers)
        pooler = _fill(built, state, checkpoint, config.pooler)
    if pooler.in_dim != hidden_size:
        name = config.backbone.model_name_or_path
        raise CheckpointError(f"{checkpoint}: its pooler takes d = {pooler.in_dim}, --model_name_or_path={name} gives {hidden_size}")
    return pooler.eval()


def resolve_checkpoint(checkpoint: Path, config: RunConfig) -> tuple[RunConfig, list[str]]:
    """The configuration of what a checkpoint holds, and a remark on what had to be assumed.

    A run folder, or a `.pth` with its configuration beside it, has been asked already (`flags.adopt_checkpoint`); a bare `.pth` tells its
    sizes by its shapes.

    Raises:
        CheckpointError: of no known pooler.
    """
    if checkpoint.is_dir() or beside(checkpoint).is_file():
        return config, []
    found, in_dim = infer_pooler(read_release_head(checkpoint))
    if found.jk_mode == "max" and config.pooler.jk_mode in ("mean", "none"):  # which have the same shapes
        found = replace(found, jk_mode=config.pooler.jk_mode)
    sizes = f", h = {found.gat_hidden_dim}, K = {found.num_layers}, jump {found.jk_mode}" if found.pooling_method == "glot" else ""
    remark = (
        f"{checkpoint} says nothing of its training; read off its shapes: {found.pooling_method}, d = {in_dim}{sizes}; "
        f"assumed: --tau={config.graph.tau:g}, --model_name_or_path={config.backbone.model_name_or_path}"
    )
    return replace(config, pooler=found), [remark]


def _fill(pooler: Pooler, state: dict[str, Tensor], path: Path, config: PoolerConfig) -> Pooler:
    try:
        pooler.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit a {config.pooling_method} pooler ({' '.join(str(error).split())})") from error
    return pooler.eval()


def beside(checkpoint: Path) -> Path:
    """The configuration that belongs to a `.pth`."""
    return checkpoint.with_name(checkpoint.name + ".json")


PROMPT_FLAGS = ("prompts", "exclude_prompt")


def _asked(config: RunConfig) -> dict[str, object]:
    """The flags that a released file depends on."""
    flat = config.to_dict()
    return config.determining() | {name: flat[name] for name in PROMPT_FLAGS}


def check_released_file(target: Path, config: RunConfig) -> None:
    """Refuse to replace a checkpoint that another configuration made.

    Raises:
        ConfigError: naming what differs.
    """
    longest = os.pathconf("/", "PC_NAME_MAX") - len(".json.partial")
    if len(target.name) > longest:
        raise ConfigError(f"--save_dir: the name of its file has {len(target.name)} characters, the system takes {longest}")
    if not target.exists():
        return
    way_out = "move it away, or choose another --save_dir"
    if not beside(target).is_file():
        raise ConfigError(f"--save_dir: {target} is there and nothing says what made it; {way_out}")
    saved, own = read_config(beside(target)).get("asked", {}), _asked(config)
    earlier = {name: value for name, value in _asked(RunConfig()).items() if name in PROMPT_FLAGS}  # what older files do not say
    saved = earlier | saved
    differing = [
        f"{name} ({'unset' if saved.get(name) is None else saved[name]} there)" for name, value in own.items() if saved.get(name) != value
    ]
    if differing:
        raise ConfigError(f"--save_dir: {target} was made with another {', '.join(differing)}; {way_out}")


def save_released_file(target: Path, run_dir: Path, config: RunConfig) -> Path:
    """The pooler of a finished run as `.pth`, and its configuration beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    model, _, _ = load_run(run_dir)
    partial = target.with_name(target.name + ".partial")
    buffer = io.BytesIO()
    torch.save(model.pooler.state_dict(), buffer)  # to memory: torch has an error of its own for a full disk
    partial.write_bytes(buffer.getbuffer())
    facts = {"asked": _asked(config), "run": str(run_dir.resolve()), "sha256": file_sha256(partial)}
    write_json(beside(target), {**json.loads((run_dir / CONFIG).read_text()), **facts})
    partial.replace(target)
    return target


def read_release_head(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` that the release saved: a state dict of its pooler, read without running any code.

    Raises:
        CheckpointError: not such a file.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: not there, or not a .pth that torch.save of torch 1.6 or later wrote")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds more than tensors; refusing to run code from a checkpoint") from error
    except RuntimeError as error:
        raise CheckpointError(f"{path}: not a .pth that torch.save wrote ({' '.join(str(error).split())})") from error
    if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise CheckpointError(f"{path}: must be a state dict of tensors")
    return state


def infer_pooler(state: dict[str, Tensor]) -> tuple[PoolerConfig, int]:
    """The pooler that a bare state dict belongs to, read off names and shapes, and its d. tau leaves no trace in the weights.

    Raises:
        CheckpointError: no known pooler has these names and shapes.
    """
    try:
        return _infer_pooler(state)
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"a state dict of no known pooler: {error} is missing or of another shape") from error


def _infer_pooler(state: dict[str, Tensor]) -> tuple[PoolerConfig, int]:
    if any(name.startswith("poolers.0.") or name == "center" for name in state):
        raise CheckpointError("a state dict of a pooler on several hidden layers, which only its .json tells; keep both files together")
    if any(name.startswith("mlp.lins.") for name in state):
        layers = [name for name in state if re.fullmatch(r"mlp\.lins\.\d+\.weight", name)]
        first = state["mlp.lins.0.weight"]
        return PoolerConfig("mlp", gat_hidden_dim=first.shape[0], num_layers=len(layers)), first.shape[1]
    if "score_layer.0.weight" not in state:
        raise CheckpointError(f"no score_layer.0.weight among {', '.join(list(state)[:5])} ...: not a GLOT or AdaPool head")
    width, scored = state["score_layer.0.weight"].shape
    num_layers = len({name.split(".")[1] for name in state if name.startswith("convs.")})
    if num_layers == 0:
        return PoolerConfig("adapool", scorer_hidden=width), scored
    gnn_type, first = _infer_conv(state)
    hidden, in_dim = first.shape
    jump = "cat" if scored == in_dim + num_layers * hidden else "lstm" if "jk.att.weight" in state else "max"
    return PoolerConfig("glot", gnn_type=gnn_type, gat_hidden_dim=hidden, num_layers=num_layers, jk_mode=jump), in_dim


def _infer_conv(state: dict[str, Tensor]) -> tuple[str, Tensor]:
    """Conv type and the first layer's input weight (h, d)."""
    signs = (
        ("gat", "convs.0.att_src", "lin.weight"),
        ("gine", "convs.0.lin.bias", "nn.lins.0.weight"),
        ("gin", "convs.0.eps", "nn.lins.0.weight"),
        ("gcn", "convs.0.lin.weight", "lin.weight"),
    )
    for gnn_type, sign, weight in signs:
        if sign in state:
            return gnn_type, state[f"convs.0.{weight}"]
    raise CheckpointError(f"convs.0.* of an unknown kind: {', '.join(name for name in state if name.startswith('convs.0.'))}")
