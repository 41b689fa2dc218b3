"""The run folder: configuration, weights, metrics, result.

runs/<run_name>/
    config.json         every flag, and what was resolved: d and the identity of the backbone
    metrics.jsonl       one line every few steps and every epoch
    model.safetensors   pooler.* and head.*
    predictions.csv     row, label, prediction, score per class, names of the classes, texts
    confusion.csv       with classes: how many rows of each were taken for each
    classes.csv         with classes: precision, recall, F1 and rows of each
    backbone/           with --finetune_backbone=full: a model folder; with lora: the adapter, as peft writes it
    training-*.pt       while the run is not finished: see `glot.training.resume`
    result.json         written last
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from glot.data.custom import CUSTOM, split_names
from glot.data.labels import LabelFacts
from glot.data.tasks import TASKS, TaskSpec, custom_task
from glot.errors import CheckpointError, disk_door
from glot.locate import expand_user
from glot.nn.heads import FeatureHead, FittedHead
from glot.nn.model import SentenceModel
from glot.nn.own import OwnCode, is_own
from glot.nn.pooler import Pooler
from glot.nn.poolers import RESERVED, acting_names
from glot.nn.poolers.pairs import build_model_pooler
from glot.settings.checks import value_problems
from glot.settings.choices import EVALUATIONS
from glot.settings.config import RunConfig, read_config, refuse_folds
from glot.settings.effects import has_gradient
from glot.states.backbone import BackboneSource, find_backbone, identity_of, with_adapter
from glot.training.folders import RESULT, current_umask
from glot.training.result_file import AGAIN, BACKBONE, CONFIG, WEIGHTS, read_result, write_json
from glot.trust import check_named, check_trusted


def allow_as_others(path: Path) -> None:
    """Give a file the rights that every other new file has: safetensors lets nobody but the owner read."""
    path.chmod(0o666 & ~current_umask())


def save_model(folder: Path, model: nn.Module) -> None:
    """Pooler and head as `model.safetensors`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with disk_door(folder / WEIGHTS):
        save_file(tensors, folder / WEIGHTS)
    allow_as_others(folder / WEIGHTS)


def write_config(folder: Path, config: RunConfig, resolved: dict[str, object]) -> None:
    """`config.json`: every flag, and what was resolved on the way (hidden_size, backbone identity)."""
    write_json(folder / CONFIG, {"flags": config.to_dict(), "resolved": resolved})


def task_of(config: RunConfig, resolved: dict[str, Any]) -> TaskSpec:
    """The row of a run's task: of a custom one, by what its data were."""
    if config.data.task != CUSTOM:
        return TASKS[config.data.task]
    return custom_task(LabelFacts.from_dict(resolved["labels"]), len(split_names(config.files.text_columns)), ())


def build_model(
    config: RunConfig, task: TaskSpec, hidden_size: int, sources: dict[str, str] | None = None, finished: bool = False
) -> SentenceModel:
    """The model of a configuration, freshly initialised from torch's global generator.

    Args:
        config: of the run.
        task: of the run.
        hidden_size: d.
        sources: as in `build_pooler`.
        finished: with the head that the run ends with, which a solver fits with `--head=probe` or `svm`; else with the one that is trained.
    """
    layers = config.backbone.hidden_layer.count(",") + 1
    pooler = build_model_pooler(config.pooler, config.graph, hidden_size, config.data_seed, sources, layers, task.is_symmetric)
    if config.head.head != "trained" and (finished or not has_gradient(config)):
        return SentenceModel(pooler, fitted_head(config, task, pooler))
    if pooler.sides == 2:
        return SentenceModel(pooler, FeatureHead(pooler.out_dim, task.num_labels, config.head.dropout))
    flags = config.to_dict()
    head = task.head(pooler.out_dim, task.num_labels, **{name: flags[name] for name in task.head_flags})
    return SentenceModel(pooler, head)


def fitted_head(config: RunConfig, task: TaskSpec, pooler: Pooler) -> FittedHead:
    """The head that a solver fits, still empty."""
    vectors = task.num_texts // pooler.sides
    return FittedHead(pooler.out_dim, vectors, task.num_labels, config.head.pair_features)


def own_sources(where: Path, saved: dict[str, Any], trust: bool) -> dict[str, str] | None:
    """The user's own code that a checkpoint carries, by name; `saved` is its configuration.

    Raises:
        CheckpointError: it was never trained with here, and is not trusted; or it names code in a file, which it must carry.
    """
    sources: dict[str, str] = saved["resolved"].get("sources") or {}
    config = RunConfig.from_dict(saved["flags"])
    named = acting_names(config.pooler, config.graph).values()
    is_old_score = config.data.task in EVALUATIONS and trust  # older folders of scores carry no code
    for name in [name for name in named if name not in sources and name not in RESERVED and is_own(name)]:
        if name.rpartition(":")[0].endswith(".py") and not is_old_score:  # it would be read from whatever folder this command runs in
            raise CheckpointError(f"{where}: names code that it does not carry ({name}), so it was not made by a training; do not use it")
        if not trust:
            check_named(name, where)
    for name, text in sources.items():
        if not trust:
            check_trusted(OwnCode(name, text).sha256, name, where)
    return sources or None


def load_run(folder: Path, trust_pooler: bool = False) -> tuple[SentenceModel, RunConfig, dict[str, Any]]:
    """The trained model of a run folder in evaluation mode, its configuration and what was resolved.

    Args:
        folder: of the run.
        trust_pooler: run a pooler's own code that the folder carries, whoever wrote it.

    Raises:
        CheckpointError: the folder is no finished run, or its weights do not fit its configuration.
    """
    saved = read_config(folder / CONFIG)
    if (folder / RESULT).is_file():
        read_result(folder)
    refuse_folds(folder, saved)
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: no {WEIGHTS}; give the folder of a finished run that trained a pooler")
    config, resolved = RunConfig.from_dict(saved["flags"]), saved["resolved"]
    problems = value_problems(config)
    if problems:
        raise CheckpointError(f"{folder / CONFIG}: is damaged ({problems[0]}); {AGAIN}")
    sources = own_sources(folder, saved, trust_pooler)
    model = build_model(config, task_of(config, resolved), resolved["hidden_size"], sources, finished=True)
    try:
        weights = load_file(folder / WEIGHTS)
        check_weights(folder / WEIGHTS, weights, model.state_dict())
        model.load_state_dict(weights)
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: weights and configuration disagree ({' '.join(str(error).split())})") from error
    return model.eval(), config, resolved


def check_weights(path: Path, weights: dict[str, Tensor], made: dict[str, Tensor]) -> None:
    """Refuse what a model would take and make something else of.

    Args:
        path: of the file.
        weights: what it holds.
        made: the tensors that the model has.

    Raises:
        CheckpointError: another precision, or numbers that are not finite.
    """
    for name, tensor in weights.items():
        if name in made and tensor.dtype != made[name].dtype:
            raise CheckpointError(f"{path}: {name} holds {tensor.dtype}, and the model {made[name].dtype}; {AGAIN}")
    check_finite(path, weights)


def check_finite(path: Path, weights: dict[str, Tensor]) -> None:
    """Refuse weights of a file that are no numbers.

    Raises:
        CheckpointError: NaN or infinity.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite; {AGAIN}")


def find_trained_backbone(checkpoint: Path, saved: dict[str, Any], config: RunConfig) -> BackboneSource:
    """The backbone that a checkpoint was trained on, or together with, wherever the current folder is.

    Args:
        checkpoint: a run folder, or a `.pth` with its configuration beside it.
        saved: of `read_saved`.
        config: what is asked for now; its model's name counts, and whether this command trusts the model's own code.

    Raises:
        CheckpointError: the backbone on this machine is not the one of the training, or the one that was trained is gone.
        ConfigError: it cannot be found.
    """
    resolved, trained = saved["resolved"], RunConfig.from_dict(saved["flags"]).backbone
    run = checkpoint if checkpoint.is_dir() else Path(str(saved.get("run", checkpoint.parent)))
    if trained.is_trained and not (run / BACKBONE).is_dir():
        raise CheckpointError(f"{checkpoint}: was trained together with its backbone, which is not in {run}; give the run's folder")
    if trained.is_trained and (run / RESULT).is_file():
        read_result(run)  # damaged weights of the backbone are said as such, before they are loaded
    if trained.is_trained and not checkpoint.is_dir() and read_config(run / CONFIG)["flags"] != saved["flags"]:  # a .pth
        raise CheckpointError(f"{checkpoint}: {run} holds another run by now; give the folder of its own run")
    name, trained_on = config.backbone.model_name_or_path, resolved["backbone"]
    if trained.finetune_backbone == "full":
        if name != trained.model_name_or_path:
            raise CheckpointError(f"{checkpoint}: has its own backbone, which it trained; leave {name} out")
        return find_backbone(str(run / BACKBONE), config.backbone.trust_remote_code)
    folder = resolved.get("folder") if name == trained.model_name_or_path else None  # another name says where it is now
    if folder is not None and not Path(folder).is_dir() and not expand_user(name).is_dir():  # a relative name must not be asked of the hub
        where = "put it back, or say where it is by --backbone (main.py: --model_name_or_path)"
        raise CheckpointError(f"{checkpoint}: its backbone is no longer in {folder}; {where}")
    repository, _, commit = trained_on.partition("@")
    pinned = commit if commit and repository == name.partition("@")[0] else None
    found = identity_of(repository if pinned else name, pinned, folder)
    if found != trained_on:  # before a line of the model's own code can run
        raise CheckpointError(_other_backbone(checkpoint, trained.model_name_or_path, name, trained_on, found))
    source = find_backbone(repository if pinned else name, config.backbone.trust_remote_code, pinned, folder)
    if source.identity != trained_on:
        raise CheckpointError(_other_backbone(checkpoint, trained.model_name_or_path, name, trained_on, source.identity))
    found_as = replace(source, name=name)
    return with_adapter(found_as, run / BACKBONE) if trained.finetune_backbone == "lora" else found_as


def _other_backbone(checkpoint: Path, trained: str, name: str, trained_on: str, found: str) -> str:
    """That a name stands for another backbone than the one of the training."""
    what = f"another {name}" if name == trained else f"{trained}, and {name} is another backbone"
    return f"{checkpoint}: was trained on {what} ({trained_on} there, {found} here)"
