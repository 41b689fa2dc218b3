"""The weights of a backbone: loaded by transformers, and checked against what configuration and files say."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from glot.errors import ConfigError, library_door, reason
from glot.hub import cache_where_unreachable, explain
from glot.states.backbone.source import AGAIN, BackboneSource, lone_encoder
from glot.states.backbone.tokenizer import NO_LIMIT

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "autocast": torch.float32}
"""`--backbone_dtype` -> precision of the weights; with autocast, torch computes matrix products in bfloat16."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Allowed precisions of weights, by their names in safetensors."""
POSITION_TABLES = ("position_embeddings", "embed_positions", "positions_embed", "wpe")
"""Names of absolute position tables in transformers' models."""


def load_weights(source: BackboneSource, dtype: str, where: dict[str, Any] | None = None) -> Any:
    """The model object of transformers. Every tensor that its states need comes from the checkpoint.

    Args:
        source: from `find_backbone`.
        dtype: a name of `DTYPES`.
        where: further options of `from_pretrained`.

    Raises:
        ConfigError: not readable, of another size than the configuration says, or without some of the model's tensors.
    """

    def describe(error: Exception) -> str:
        unsafe = "weights_only" in str(error)  # torch advises to load the file anyway, which may run its code
        why = "a .bin file is no plain checkpoint of tensors" if unsafe else reason(error)
        found = explain(error, source.revision) or f"its weights cannot be loaded ({why}); {AGAIN}"
        return f"--model_name_or_path={source.name}: {found}"

    options = {"dtype": DTYPES[dtype], "output_loading_info": True, "ignore_mismatched_sizes": True, **source.options, **(where or {})}
    with library_door(ConfigError, describe), cache_where_unreachable(is_local=source.revision is None):
        model, report = (lone_encoder(source.config) or transformers.AutoModel).from_pretrained(source.path, **options)
    for name, found, expected in report["mismatched_keys"]:
        raise ConfigError(
            f"--model_name_or_path={source.name}: {name} is {tuple(found)} in the weights and {tuple(expected)} by the configuration; "
            "the two files do not belong together"
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:  # they would be random; BERT's own pooler, excluded above, is not used
        raise ConfigError(
            f"--model_name_or_path={source.name}: the checkpoint lacks {len(missing)} of the model's tensors ({missing[0]}, ...)"
        )
    _refuse_unused_blocks(source, model, report["unexpected_keys"])
    _refuse_odd_dtypes(source, model)
    return model


def _refuse_unused_blocks(source: BackboneSource, model: nn.Module, unexpected: Iterable[str]) -> None:
    """Refuse a checkpoint with more blocks than the configuration counts. Unused heads are allowed.

    Raises:
        ConfigError: it holds such a block.
    """
    known = {numberless(name) for name, _ in model.named_parameters() if numberless(name) != name}
    for name in sorted(unexpected):
        shape = numberless(name)
        if shape != name and any(shape == own or shape.endswith(f".{own}") for own in known):
            raise ConfigError(
                f"--model_name_or_path={source.name}: the checkpoint holds {name}, "
                f"the configuration counts {source.num_layers} layers; the two files do not belong together"
            )


def numberless(name: str) -> str:
    """A parameter's name with `#` for its numbers: equal for the same part of every block."""
    return re.sub(r"\.\d+\.", ".#.", name)


def _refuse_odd_dtypes(source: BackboneSource, model: nn.Module) -> None:
    """Refuse weights that are not floating-point in the file, because transformers casts any type.

    Raises:
        ConfigError: a weight of another type, in a model that transformers has not opened as a quantised one.
    """
    if getattr(model, "hf_quantizer", None) is not None:  # transformers only warns of a method that it does not know
        return
    weights = [name for name, _ in model.named_parameters()]
    for file in sorted(source.files.glob("model*.safetensors")):
        for name, kind in _dtypes(file).items():
            is_weight = any(name == own or name.endswith(f".{own}") or own.endswith(f".{name}") for own in weights)
            if kind not in FLOATS and is_weight:
                where = f"--model_name_or_path={source.name}: {file.name}"
                raise ConfigError(f"{where} holds {name} as {kind}, not as floating-point numbers; {AGAIN}")


def _dtypes(file: Path) -> dict[str, str]:
    """Tensor name -> precision, by its name in safetensors."""
    with library_door(ConfigError, lambda error: f"{file}: cannot be read ({reason(error)}); {AGAIN}"), safe_open(file, "pt") as tensors:
        return {name: str(tensors.get_slice(name).get_dtype()) for name in tensors.keys()}  # noqa: SIM118 - not a dictionary


def embedding_rows(model: Any) -> int | None:
    """Number of rows of the token embedding; None where the model does not name its embedding."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # transformers' answer where no embedding is named; a model's own code lacks the method
        return None
    weight = getattr(table, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) else None


def position_rows(model: nn.Module) -> int:
    """Most tokens that the model's absolute position tables can hold; `NO_LIMIT` without such a table.

    RoBERTa's positions start after the padding id, OPT's at an offset, so their tables hold that many fewer tokens.
    """
    rooms = []
    for name, table in model.named_modules():
        if isinstance(table, nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES:
            behind = getattr(table, "offset", 0 if table.padding_idx is None else table.padding_idx + 1)
            rooms.append(table.num_embeddings - int(behind))
    return min((room for room in rooms if room > 0), default=NO_LIMIT)
