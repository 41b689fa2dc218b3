"""The run folder: configuration, weights, metrics, result. Also heads that the release saved.

runs/<run_name>/
    config.json         every flag, and what was resolved: d and the identity of the backbone
    metrics.jsonl       one line every few steps and every epoch
    model.safetensors   pooler.* and head.*
    predictions.csv     row, label, prediction, score per class
    backbone/           with --finetune_backbone=1: a model folder
    result.json         written last
"""

import csv
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glot.config import GraphConfig, PoolerConfig, RunConfig
from glot.errors import CheckpointError, ConfigError
from glot.model import SentenceModel
from glot.poolers import build_pooler
from glot.tasks import TASKS

CONFIG, WEIGHTS, PREDICTIONS, RESULT = "config.json", "model.safetensors", "predictions.csv", "result.json"
BACKBONE = "backbone"
MARK = ".glot-run"
"""An empty file that says: this folder may be replaced by `--overwrite=1`."""


def create_run_folder(root: Path, name: str, overwrite: bool) -> Path:
    """A new folder `root/name`; where that exists it is replaced with `overwrite`, else `name-2`, `name-3`, ... is taken.

    Raises:
        ConfigError: the folder to replace was not made by this function.
    """
    folder, count = root / name, 1
    if overwrite and folder.is_dir():
        if not (folder / MARK).is_file():
            raise ConfigError(f"--overwrite=1: {folder} is no run folder (it has no {MARK}); move it away, or choose another --run_name")
        shutil.rmtree(folder)
    while True:
        try:
            folder.mkdir(parents=True)
            (folder / MARK).touch()
            return folder
        except FileExistsError:
            count += 1
            folder = root / f"{name}-{count}"


def write_json(path: Path, value: object) -> None:
    """Whole or absent, and never with NaN."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def save_model(folder: Path, model: nn.Module) -> None:
    """Pooler and head as `model.safetensors`."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)


def write_config(folder: Path, config: RunConfig, resolved: dict[str, object]) -> None:
    """`config.json`: every flag, and what was resolved on the way (hidden_size, backbone identity)."""
    write_json(folder / CONFIG, {"flags": config.to_dict(), "resolved": resolved})


def build_model(config: RunConfig, hidden_size: int) -> SentenceModel:
    """The model of a configuration, freshly initialised from torch's global generator."""
    task = TASKS[config.data.task]
    pooler = build_pooler(config.pooler, config.graph, hidden_size, config.data_seed)
    return SentenceModel(pooler, task.head(pooler.out_dim, task.num_labels))


def load_run(folder: Path) -> tuple[SentenceModel, RunConfig, dict[str, Any]]:
    """The trained model of a run folder in evaluation mode, its configuration and what was resolved.

    Raises:
        CheckpointError: the folder is no finished run, or its weights do not fit its configuration.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: no {name}; give the folder of a finished run")
    saved = json.loads((folder / CONFIG).read_text())
    config, resolved = RunConfig.from_dict(saved["flags"]), saved["resolved"]
    model = build_model(config, resolved["hidden_size"])
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: weights and configuration disagree ({' '.join(str(error).split())})") from error
    return model.eval(), config, resolved


def write_predictions(path: Path, labels: np.ndarray, outputs: np.ndarray) -> None:
    """Row, label, prediction and a score per class (classes), or row, label and prediction (similarity)."""
    classes = outputs.ndim == 2
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["row", "label", "prediction"] + ([f"score_{index}" for index in range(outputs.shape[1])] if classes else []))
        for row, (label, output) in enumerate(zip(labels.tolist(), outputs, strict=True)):
            values = [int(output.argmax()), *(f"{value:.6g}" for value in output)] if classes else [f"{output:.6g}"]
            table.writerow([row, label, *values])


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


def load_release_head(path: Path, graph: GraphConfig) -> tuple[nn.Module, PoolerConfig]:
    """A pooler with the weights of a released `.pth`, its sizes read off the file; the graph rule is the caller's word.

    Raises:
        CheckpointError: unreadable, or of no known pooler.
    """
    state = read_release_head(path)
    config, in_dim = infer_pooler(state)
    pooler = build_pooler(config, graph, in_dim)
    try:
        pooler.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit a {config.pooling_method} pooler ({' '.join(str(error).split())})") from error
    return pooler.eval(), config
