"""LoRA: low-rank adapters on a backbone, trained in place of its weights. The door to peft, which is imported where it is used."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from glot.errors import CheckpointError, ConfigError, disk_door, library_door, need, reason
from glot.progress import warn
from glot.states.backbone.hashes import hash_folder
from glot.states.backbone.model import Backbone
from glot.states.backbone.source import BackboneSource
from glot.states.backbone.weights import numberless

LORA_FLAG = "--finetune_backbone=lora"
AUTO = "auto"
"""Value of `--lora_targets`: every linear layer of the blocks that the states depend on."""


STATE_SPACE = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
READ_BY_KERNELS = "out_proj"
"""Linear layer of state-space models whose weight their kernels read without calling the layer; peft refuses it there."""


class LoraOptions(NamedTuple):
    """An adapter, before it is made.

    Attributes:
        r: rank.
        alpha: the adapter's output is scaled by alpha / r.
        targets: names of linear layers with commas between, or `auto`.
        seed: of the initial weights.
    """

    r: int
    alpha: float
    targets: str
    seed: int


SAMPLE = ["Which layers does a state depend on? One text with some words, read once, tells."]


def train_weights(backbone: Backbone, lora: LoraOptions | None) -> Any:
    """Give gradient to the weights of a backbone that its states depend on, or to those of an adapter alone.

    Returns:
        the model as peft sees it, for `save_adapter`; None without an adapter.

    Raises:
        ConfigError: see `add_adapter`.
    """
    ids = backbone.tokenise(SAMPLE)

    def sample() -> Tensor:
        """States of the sample."""
        return backbone.encode(ids).tokens

    if lora is None:
        free_weights(backbone.model, sample)
        return None
    return add_adapter(backbone.model, sample, lora, backbone.source.name)


def with_adapter(source: BackboneSource, folder: Path) -> BackboneSource:
    """The same backbone with a trained adapter."""
    merge = partial(merge_adapter, folder=str(folder), name=source.name)
    return replace(source, merge=merge, identity=f"{source.identity}+{hash_folder(folder)}")


def need_adapters() -> None:
    """Refuse to train an adapter where peft is missing.

    Raises:
        ConfigError: it is.
    """
    need("peft", "lora", LORA_FLAG)


def add_adapter(model: Any, sample: Callable[[], Tensor], options: LoraOptions, name: str) -> Any:
    """Put an adapter into a model; its weights are the only ones with gradient then. Until it is trained it changes no state.

    Source: Hu et al. 2022, "LoRA"; `peft.LoraConfig`.

    Args:
        model: of transformers.
        sample: runs the model on some text: states (N, d).
        options: of the adapter.
        name: the backbone's, for messages.

    Returns:
        the model as peft sees it, which shares its modules with `model` and saves the adapter.

    Raises:
        ConfigError: a target is no linear layer that the states depend on, or peft refuses the model.
    """
    from peft import LoraConfig, get_peft_model

    with torch.no_grad():
        before = sample()
    targets = _find_targets(model, sample, options.targets, name)
    config = LoraConfig(r=options.r, lora_alpha=options.alpha, target_modules=targets)
    refused = f"--model_name_or_path={name}: takes no adapter of rank {options.r}"
    door = library_door(ConfigError, lambda error: f"{refused} ({reason(error)}); name other --lora_targets")
    with door, torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for a name that is going to change
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # GPT-2's layers are transposed, which peft sees by itself
        torch.manual_seed(options.seed)
        adapted = get_peft_model(model, config)
    with torch.no_grad():
        if not torch.allclose(before, sample(), rtol=1e-3, atol=1e-4):
            raise ConfigError(f"{refused}: it changes the states before it is trained; name other --lora_targets")
    return adapted


def save_adapter(adapted: Any, folder: Path) -> None:
    """Write an adapter as peft does: `PeftModel.from_pretrained(base, folder)` and `AutoModel.from_pretrained(folder)` read it."""
    for config in adapted.peft_config.values():  # a relative name would depend on the current folder
        base = Path(str(config.base_model_name_or_path))
        config.base_model_name_or_path = str(base.absolute()) if base.is_dir() else str(base)
    with disk_door(folder):
        adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's template of a model card, with nothing filled in


def merge_adapter(model: Any, folder: str, name: str) -> Any:
    """The model with an adapter's weights added to its own.

    Raises:
        ConfigError: peft is not installed.
        CheckpointError: the adapter is damaged, or belongs to another model.
    """
    need("peft", "lora", f"{folder}: a run with {LORA_FLAG}")
    from peft import PeftModel, get_peft_model_state_dict

    door = library_door(CheckpointError, lambda error: f"{folder}: is no adapter for {name} ({reason(error)})")
    with door, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as in `add_adapter`
        warnings.simplefilter("ignore", UserWarning)  # that the base is not where it was in training; it was found and checked
        adapted = PeftModel.from_pretrained(model, folder)
        weights = get_peft_model_state_dict(adapted)
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise CheckpointError(f"{folder}: holds numbers that are not finite; do the run again, or take the file from a copy")
    return adapted.merge_and_unload()


def _find_targets(model: Any, sample: Callable[[], Tensor], asked: str, name: str) -> list[str]:
    """The full names of the linear layers that get an adapter.

    Raises:
        ConfigError: a name that was asked for is not among those that can.
    """
    able = _adaptable(model, sample)
    kinds = sorted({target.rpartition(".")[2] for target in able})
    if not able:
        raise ConfigError(f"{LORA_FLAG}: the states that are read of {name} depend on no linear layer; use full, or a later --hidden_layer")
    if asked == AUTO:
        beside = sorted({numberless(left) for left in _without_layer(model, sample)})
        if beside:
            warn(f"--lora_targets=auto: {', '.join(beside)} of {name} are weights without a linear layer, so they get no adapter")
        return able
    wanted = [word.strip() for word in asked.split(",")]
    matches = {word: [target for target in able if f".{target}".endswith(f".{word}")] for word in wanted}
    missing = next((word for word, found in matches.items() if not found), None)
    if missing is not None:
        raise ConfigError(
            f"--lora_targets={asked}: {name} has no linear layer {missing!r} that its states depend on; it has {', '.join(kinds)}"
        )
    return sorted({target for found in matches.values() for target in found})


def _without_layer(model: Any, sample: Callable[[], Tensor]) -> list[str]:
    """Matrices of the blocks that the states depend on and that belong to no linear layer, as XLNet's attention has them."""
    blocks = [f"{name}." for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    plain = (nn.Linear, transformers.pytorch_utils.Conv1D, nn.Embedding, nn.LayerNorm)
    found = {
        f"{name}.{own}": weight
        for name, part in model.named_modules()
        if name.startswith(tuple(blocks)) and not isinstance(part, plain)
        for own, weight in part.named_parameters(recurse=False)
        if weight.ndim > 1 and weight.is_floating_point()
    }
    try:
        for weight in found.values():
            weight.requires_grad_(True)
        if found:
            with torch.enable_grad():
                _back_from(sample())
        return [name for name, weight in found.items() if weight.grad is not None and bool((weight.grad != 0).any())]
    finally:
        for weight in found.values():
            weight.requires_grad_(False).grad = None


def _back_from(states: Tensor) -> None:
    """Gradients of a sum in which every number of the states has a weight of its own."""
    if states.requires_grad:
        (states.float() * torch.sin(torch.arange(states.numel(), device=states.device).view_as(states))).sum().backward()


def free_weights(model: nn.Module, sample: Callable[[], Tensor]) -> None:
    """Give gradient to the weights that the states depend on, and to no others: BERT's own pooler, layers above the one that is read.

    Experts that the sample did not reach count like those beside them.
    """
    called: set[str] = set()
    handles = [part.register_forward_hook(lambda *_, name=name: called.add(name)) for name, part in model.named_modules()]
    model.requires_grad_(True)
    try:
        with torch.enable_grad():
            _back_from(sample())
    finally:
        for handle in handles:
            handle.remove()
    reached = {name for name, weight in model.named_parameters() if weight.grad is not None}
    beside = {numberless(name) for name in reached}
    for name, weight in model.named_parameters():
        is_spare = name.rpartition(".")[0] not in called and numberless(name) in beside
        weight.requires_grad_(name in reached or is_spare).grad = None


def _adaptable(model: Any, sample: Callable[[], Tensor]) -> list[str]:
    """Linear layers of the blocks that are called, and whose weights get a gradient from the states.

    Some architectures use a layer's weight without calling it (Mamba), and layers above the hidden layer that is read get no gradient.
    Experts that the sample did not reach count like those beside them.
    """
    blocks = [f"{name}." for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    kind = getattr(model.config, "model_type", None)
    linear = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear | transformers.pytorch_utils.Conv1D)
        and part.weight.is_floating_point()
        and name.startswith(tuple(blocks))
        and not (kind in STATE_SPACE and name.endswith(READ_BY_KERNELS))
    }
    called: set[str] = set()
    handles = [part.register_forward_hook(lambda *_, name=name: called.add(name)) for name, part in linear.items()]
    try:
        for part in linear.values():
            part.weight.requires_grad_(True)
        with torch.enable_grad():
            _back_from(sample())
        moved = {name for name, part in linear.items() if part.weight.grad is not None and bool((part.weight.grad != 0).any())}
    finally:
        for handle in handles:
            handle.remove()
        for part in linear.values():
            part.weight.requires_grad_(False).grad = None
    able = called & moved
    beside = {numberless(name) for name in able}
    return [name for name in linear if name in able or (name not in called | moved and numberless(name) in beside)]
