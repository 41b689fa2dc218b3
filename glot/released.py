"""Checkpoints as the release knows them: a `.pth` with the state dict of a pooler, ours with a configuration beside it.

The run folder stays the truth; these files are for tools that expect the release's.
"""

import json
import pickle
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from glot.checkpoint import CONFIG, load_run, write_json
from glot.config import GraphConfig, PoolerConfig, RunConfig
from glot.errors import CheckpointError, ConfigError
from glot.poolers import build_pooler


def released_name(config: RunConfig) -> Path:
    """Where a contrastive run's pooler goes: `--save_dir` and the name that the release's sweep file asks for."""
    pooler, train, contrastive = config.pooler, config.train, config.contrastive
    parts = (
        f"embedding_{config.backbone.model_name_or_path.replace('/', '_')}",
        f"{pooler.pooling_method}_layers{pooler.num_layers}_{pooler.jk_mode}",
        f"lr{train.lr}_bs{train.batch_size}_ep{train.epochs}_len{config.backbone.max_length}",
        f"proj{contrastive.proj_dim}_sample{config.data.num_train_samples}",
    )
    return Path(contrastive.save_dir) / ("_".join(parts) + ".pth")


def load_pooler(checkpoint: Path, config: RunConfig, hidden_size: int) -> tuple[nn.Module, list[str]]:
    """The pooler of a run folder or a `.pth` for tokens of width `hidden_size`, and remarks on what had to be assumed.

    Raises:
        CheckpointError: not readable, or made for another width.
    """
    remarks = []
    if checkpoint.is_dir():
        pooler = load_run(checkpoint)[0].pooler
    else:
        pooler, found = load_release_head(checkpoint, config.graph, config.pooler.jk_mode)
        if not beside(checkpoint).is_file():
            sizes = f", h = {found.gat_hidden_dim}, K = {found.num_layers}, jump {found.jk_mode}" if found.pooling_method == "glot" else ""
            remarks.append(
                f"{checkpoint} says nothing of its training; read off its shapes: {found.pooling_method}, d = {pooler.in_dim}{sizes}; "
                f"assumed: --tau={config.graph.tau:g}, --model_name_or_path={config.backbone.model_name_or_path}"
            )
    if pooler.in_dim != hidden_size:
        raise CheckpointError(
            f"--checkpoint_path={checkpoint}: its pooler takes d = {pooler.in_dim}, "
            f"--model_name_or_path={config.backbone.model_name_or_path} gives {hidden_size}"
        )
    return pooler.eval(), remarks


def beside(checkpoint: Path) -> Path:
    """The configuration that belongs to a `.pth`."""
    return checkpoint.with_name(checkpoint.name + ".json")


def check_released_file(target: Path, config: RunConfig) -> None:
    """Refuse to replace a checkpoint that another configuration made.

    Raises:
        ConfigError: naming what differs.
    """
    if not target.exists():
        return
    way_out = "move it away, or choose another --save_dir"
    if not beside(target).is_file():
        raise ConfigError(f"--save_dir: {target} is there and nothing says what made it; {way_out}")
    saved = json.loads(beside(target).read_text())["asked"]
    own = config.determining()
    differing = [f"{name} ({saved.get(name)} there)" for name, value in own.items() if saved.get(name) != value]
    if differing:
        raise ConfigError(f"--save_dir: {target} was made with another {', '.join(differing)}; {way_out}")


def save_released_file(target: Path, run_dir: Path, config: RunConfig) -> Path:
    """The pooler of a finished run as `.pth`, and its configuration beside it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    model, _, _ = load_run(run_dir)
    partial = target.with_name(target.name + ".partial")
    torch.save(model.pooler.state_dict(), partial)
    write_json(beside(target), {**json.loads((run_dir / CONFIG).read_text()), "asked": config.determining(), "run": str(run_dir)})
    partial.replace(target)
    return target


def read_release_head(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` that the release saved: a state dict of its pooler, read without running any code.

    Raises:
        CheckpointError: not such a file.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: not there, or not a .pth that torch.save wrote")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds more than tensors; refusing to run code from a checkpoint") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: must be a state dict of tensors")
    return state


def infer_pooler(state: dict[str, Tensor]) -> tuple[PoolerConfig, int]:
    """The pooler that a bare state dict belongs to, read off names and shapes, and its d. tau leaves no trace in the weights.

    Raises:
        CheckpointError: no known pooler has these names.
    """
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


def load_release_head(path: Path, graph: GraphConfig, jk_mode: str = "max") -> tuple[nn.Module, PoolerConfig]:
    """A pooler with the weights of a released `.pth`, its sizes read off the file; the graph rule is the caller's word.

    `jk_mode` decides between the two jumps that leave no trace in the weights, max and mean.

    Raises:
        CheckpointError: unreadable, or of no known pooler.
    """
    state = read_release_head(path)
    config, in_dim = infer_pooler(state)
    if config.jk_mode == "max" and jk_mode == "mean":
        config = replace(config, jk_mode="mean")
    pooler = build_pooler(config, graph, in_dim)
    try:
        pooler.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit a {config.pooling_method} pooler ({' '.join(str(error).split())})") from error
    return pooler.eval(), config
