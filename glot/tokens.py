"""Where a run's token states come from: a store on disk, written now if need be, or the backbone itself.

Backbone and store do not know each other; they meet here.
"""

import itertools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from glot.backbone import SPREAD, Backbone, BackboneSource, LiveTokens, find_backbone, kept_characters
from glot.config import BackboneConfig, RunConfig, versions
from glot.datasets.stress import needles_kept
from glot.errors import DataError
from glot.progress import Clock, counter
from glot.store import StoredTokens, StoreKey, StorePlan, open_store, write_stores
from glot.store.layout import DTYPES
from glot.store.writer import WriteOptions
from glot.types import Texts

SAMPLED_TEXTS, TIMED_TEXTS = 2000, 256
"""How many texts `--estimate` tokenises, and about how many of them it runs through the backbone."""
TOKENISED_AT_ONCE = 1000


def max_tokens(backbone: BackboneConfig) -> int | None:
    """Tokens a text is cut to; None = the model's own limit."""
    return None if backbone.adaptive_length else backbone.max_length


def store_key(config: RunConfig, source: BackboneSource, texts: Texts) -> StoreKey:
    """What the stored states of all texts of a run depend on."""
    return StoreKey(
        backbone=source.identity,
        layer=source.resolve_layer(config.backbone.hidden_layer),
        max_length=max_tokens(config.backbone) or 0,
        backbone_dtype=config.backbone.backbone_dtype,
        store_dtype=config.store.store_dtype,
        texts=texts.sha256,
    )


def open_tokens(config: RunConfig, source: BackboneSource, texts: Texts, device: torch.device, clock: Clock) -> StoredTokens | LiveTokens:
    """The states of all texts of a run. A complete store needs no backbone at all; its weights are loaded only to encode.

    Raises:
        DataError: a text without a single token, named by split and row.
        StoreError: see `glot.store`.
    """
    if not config.store.precompute_hidden_states:
        backbone, ids = _load(config, source, texts, device, clock)
        return LiveTokens(backbone, ids, trainable=config.backbone.finetune_backbone)
    root, key = Path(config.store.store_dir), store_key(config, source, texts)
    stored = None if config.store.override_precompute else open_store(root, key)
    if stored is None:
        write_layers(config, source, texts, [config.backbone.hidden_layer], device, clock)
        stored = open_store(root, key)
        assert stored is not None
    return stored


def write_layers(config: RunConfig, source: BackboneSource, texts: Texts, layers: list[str], device: torch.device, clock: Clock) -> None:
    """Complete the stores of several hidden layers of one backbone, which may differ in nothing else, from one forward pass."""
    root = Path(config.store.store_dir)
    wanted = {source.resolve_layer(layer): store_key(config.with_values(hidden_layer=layer), source, texts) for layer in layers}
    options = WriteOptions(config.store.resume, config.store.override_precompute, config.output.verbose)
    if not options.rebuild and all(open_store(root, key) is not None for key in wanted.values()):
        return
    backbone, ids = _load(config, source, texts, device, clock)
    with clock.phase("encode"):
        plan = StorePlan(ids.lengths, backbone.hidden_size, config.store.store_dtype)
        names = list(wanted)
        write_stores(
            root, list(wanted.values()), plan, lambda rows: backbone.encode_sorted([ids[row] for row in rows], names), versions(), options
        )


def signal_kept(backbone: BackboneConfig, texts: list[str]) -> float:
    """Share of stress texts whose signal is whole when they are cut to the backbone's tokens. Loads a tokenizer, no weights."""
    source = find_backbone(backbone.model_name_or_path, backbone.trust_remote_code)
    return needles_kept(texts, kept_characters(source, texts, max_tokens(backbone)))


def open_backbone(config: BackboneConfig, source: BackboneSource, layer: str, device: torch.device) -> Backbone:
    """The backbone that a configuration asks for."""
    return Backbone(source, max_tokens(config), config.backbone_dtype, layer, device, config.device == SPREAD)


def _load(config: RunConfig, source: BackboneSource, texts: Texts, device: torch.device, clock: Clock) -> tuple[Backbone, "TokenIds"]:
    with clock.phase("load"):
        layer = source.resolve_layer(config.backbone.hidden_layer)
        backbone = open_backbone(config.backbone, source, layer, device)
    with clock.phase("encode"):
        return backbone, TokenIds(backbone, texts, config.output.verbose)


class TokenIds(Sequence[list[int]]):
    """Token ids of texts, spooled to a nameless temporary file: 4 bytes a token of page cache, not Python lists.

    Raises:
        DataError: a text without a single token, named by its row.
    """

    def __init__(self, backbone: Backbone, texts: Texts, verbose: bool = False) -> None:
        lengths: list[np.ndarray] = []
        place = 0
        with tempfile.TemporaryFile() as spool, counter("tokenise", "text", len(texts), verbose) as bar:
            stream = iter(texts)
            while part := list(itertools.islice(stream, TOKENISED_AT_ONCE)):
                ids = backbone.tokenise(part)
                for offset, tokens in enumerate(ids):
                    if not tokens:
                        raise DataError(f"{texts.where(place + offset)}: {part[offset]!r} has no token with this tokenizer; remove the row")
                lengths.append(np.array([len(tokens) for tokens in ids]))
                np.concatenate([np.asarray(tokens, dtype=np.int32) for tokens in ids]).tofile(spool)
                place += len(part)
                bar.update(len(part))
            spool.flush()
            self.lengths = np.concatenate(lengths)
            self._ids = np.memmap(spool, dtype=np.int32, mode="r", shape=(int(self.lengths.sum()),))
        self._ends = np.cumsum(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: int) -> list[int]:  # type: ignore[override]
        end = int(self._ends[place])
        return self._ids[end - int(self.lengths[place]) : end].tolist()


def estimate_store(config: RunConfig, source: BackboneSource, texts: Texts, device: torch.device) -> dict[str, object]:
    """What storing the states of all texts would take, from a sample: tokens, bytes, hours on this machine, free bytes."""
    count = min(len(texts), SAMPLED_TEXTS)
    places = set(np.random.default_rng(0).choice(len(texts), count, replace=False).tolist())
    drawn = [text for place, text in enumerate(texts) if place in places]
    layer = source.resolve_layer(config.backbone.hidden_layer)
    backbone = open_backbone(config.backbone, source, layer, device)
    ids = backbone.tokenise(drawn)
    timed = sorted(ids[:: max(1, count // TIMED_TEXTS)], key=len, reverse=True)
    layers = [backbone.layer]
    list(backbone.encode_sorted(timed[-8:], layers))  # the first pass pays for the allocator
    clock = Clock()
    with clock.phase("encode"):
        for batches in backbone.encode_sorted(timed, layers):
            batches[0].tokens.cpu()  # an accelerator is asked to finish
    tokens = sum(map(len, ids)) * len(texts) / count
    rate = sum(map(len, timed)) / clock.seconds["encode"]
    root = Path(config.store.store_dir).absolute()
    free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free
    return {
        "sentences": len(texts),
        "sampled": count,
        "tokens": round(tokens),
        "bytes": round(tokens) * backbone.hidden_size * DTYPES[config.store.store_dtype].itemsize,
        "free_bytes": free,
        "tokens_per_second": round(rate, 1),
        "hours": tokens / rate / 3600,
    }
