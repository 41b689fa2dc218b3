"""Where a run's token states come from: a store on disk, written now if need be, or the backbone itself.

Backbone and store do not know each other; they meet here.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from glot.backbone import Backbone, BackboneSource, LiveTokens, find_backbone, kept_characters
from glot.config import BackboneConfig, RunConfig, versions
from glot.datasets.stress import needles_kept
from glot.errors import DataError
from glot.loader import TextIndex
from glot.progress import Clock
from glot.store import StoredTokens, StoreKey, StorePlan, open_store, write_stores
from glot.store.layout import DTYPES
from glot.store.writer import WriteOptions

SAMPLED_TEXTS, TIMED_TEXTS = 2000, 256
"""How many texts `--estimate` tokenises, and how many of them it runs through the backbone."""


def max_tokens(backbone: BackboneConfig) -> int | None:
    """Tokens a text is cut to; None = the model's own limit."""
    return None if backbone.adaptive_length else backbone.max_length


def store_key(config: RunConfig, source: BackboneSource, index: TextIndex) -> StoreKey:
    """What the stored states of all texts of a run depend on."""
    return StoreKey(
        backbone=source.identity,
        layer=source.resolve_layer(config.backbone.hidden_layer),
        max_length=max_tokens(config.backbone) or 0,
        backbone_dtype=config.backbone.backbone_dtype,
        store_dtype=config.store.store_dtype,
        texts=index.sha256,
    )


def open_tokens(
    config: RunConfig, source: BackboneSource, index: TextIndex, device: torch.device, clock: Clock
) -> StoredTokens | LiveTokens:
    """The states of all texts of a run. A complete store needs no backbone at all; its weights are loaded only to encode.

    Raises:
        DataError: a text without a single token, named by split and row.
        StoreError: see `glot.store`.
    """
    if not config.store.precompute_hidden_states:
        backbone, ids = _load(config, source, index, device, clock)
        return LiveTokens(backbone, ids, trainable=config.backbone.finetune_backbone)
    root, key = Path(config.store.store_dir), store_key(config, source, index)
    stored = None if config.store.override_precompute else open_store(root, key)
    if stored is None:
        write_layers(config, source, index, [config.backbone.hidden_layer], device, clock)
        stored = open_store(root, key)
        assert stored is not None
    return stored


def write_layers(
    config: RunConfig, source: BackboneSource, index: TextIndex, layers: list[str], device: torch.device, clock: Clock
) -> None:
    """Complete the stores of several hidden layers of one backbone, which may differ in nothing else, from one forward pass."""
    root = Path(config.store.store_dir)
    wanted = {source.resolve_layer(layer): store_key(config.with_values(hidden_layer=layer), source, index) for layer in layers}
    options = WriteOptions(config.store.resume, config.store.override_precompute, config.output.verbose)
    if not options.rebuild and all(open_store(root, key) is not None for key in wanted.values()):
        return
    backbone, ids = _load(config, source, index, device, clock)
    with clock.phase("encode"):
        plan = StorePlan(np.array([len(tokens) for tokens in ids]), backbone.hidden_size, config.store.store_dtype)
        names = list(wanted)
        write_stores(
            root, list(wanted.values()), plan, lambda rows: backbone.encode_sorted([ids[row] for row in rows], names), versions(), options
        )


def signal_kept(backbone: BackboneConfig, texts: list[str]) -> float:
    """Share of stress texts whose signal is whole when they are cut to the backbone's tokens. Loads a tokenizer, no weights."""
    source = find_backbone(backbone.model_name_or_path, backbone.trust_remote_code)
    return needles_kept(texts, kept_characters(source, texts, max_tokens(backbone)))


def _load(
    config: RunConfig, source: BackboneSource, index: TextIndex, device: torch.device, clock: Clock
) -> tuple[Backbone, list[list[int]]]:
    with clock.phase("load"):
        layer = source.resolve_layer(config.backbone.hidden_layer)
        backbone = Backbone(source, max_tokens(config.backbone), config.backbone.backbone_dtype, layer, device)
    with clock.phase("encode"):
        return backbone, _tokenise(backbone, index, range(len(index.texts)))


def _tokenise(backbone: Backbone, index: TextIndex, places: Sequence[int]) -> list[list[int]]:
    """Token ids of the texts at `places`, none of them empty."""
    ids = backbone.tokenise([index.texts[place] for place in places])
    empty = next((place for place, tokens in zip(places, ids, strict=True) if not tokens), None)
    if empty is not None:
        raise DataError(f"{index.where(empty)}: {index.texts[empty]!r} has no token with this tokenizer; remove the row")
    return ids


def estimate_store(config: RunConfig, source: BackboneSource, index: TextIndex, device: torch.device) -> dict[str, object]:
    """What storing the states of all texts would take, from a sample: tokens, bytes, hours on this machine, free bytes."""
    draw = np.random.default_rng(0)
    count = min(len(index.texts), SAMPLED_TEXTS)
    rows = draw.choice(len(index.texts), count, replace=False)
    layer = source.resolve_layer(config.backbone.hidden_layer)
    backbone = Backbone(source, max_tokens(config.backbone), config.backbone.backbone_dtype, layer, device)
    ids = _tokenise(backbone, index, rows.tolist())
    timed = sorted(ids[:TIMED_TEXTS], key=len, reverse=True)
    layers = [backbone.layer]
    list(backbone.encode_sorted(timed[-8:], layers))  # the first pass pays for the allocator
    clock = Clock()
    with clock.phase("encode"):
        for batches in backbone.encode_sorted(timed, layers):
            batches[0].tokens.cpu()  # an accelerator is asked to finish
    tokens = sum(map(len, ids)) * len(index.texts) / count
    rate = sum(map(len, timed)) / clock.seconds["encode"]
    root = Path(config.store.store_dir).absolute()
    free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free
    return {
        "sentences": len(index.texts),
        "sampled": count,
        "tokens": round(tokens),
        "bytes": round(tokens) * backbone.hidden_size * DTYPES[config.store.store_dtype].itemsize,
        "free_bytes": free,
        "tokens_per_second": round(rate, 1),
        "hours": tokens / rate / 3600,
    }
