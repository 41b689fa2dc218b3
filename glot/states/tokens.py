"""The token states of a run: read from a store on disk, which is written first where it is missing, or computed by the backbone.

The packages `backbone` and `store` do not import each other; this module connects them.
"""

import itertools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from glot.distributed import ALONE, Processes
from glot.errors import ConfigError, StateError, disk_door
from glot.hub import find_file
from glot.progress import Clock, counter, say
from glot.prompts import AUTO, MODEL_FILE, Prompts, UsedPrompts, read_prompts
from glot.settings.backbone_sections import BackboneConfig
from glot.settings.choices import EVALUATIONS
from glot.settings.config import RunConfig, versions
from glot.states.backbone import AUTO as AUTO_DTYPE
from glot.states.backbone import PADDED_TOKENS, SPREAD, Backbone, BackboneSource, LiveTokens, LoraOptions, find_backbone, pick_dtype
from glot.states.layered import LayeredTokens
from glot.states.store import StoreKey, StorePlan, open_store, write_stores
from glot.states.store.layout import DTYPES
from glot.states.store.writer import WriteOptions
from glot.types import Texts, TokenBatch, TokenSource

SAMPLED_TEXTS, TIMED_TEXTS = 2000, 256
"""Number of texts that `--estimate` tokenises, and the approximate number of them that it runs through the backbone."""
TOKENISED_AT_ONCE = 1000
CHECKED_FIRST = 1 << 30
"""Bytes of a store up to which it is checked before training: a fraction of a second."""


def max_tokens(backbone: BackboneConfig) -> int | None:
    """Number of tokens that a text is cut to; None = the model's own limit."""
    return None if backbone.adaptive_length else backbone.max_length


def windows_key(backbone: BackboneConfig) -> str:
    """How texts beyond the model's limit are read, as `Backbone` and a store's key take it: empty = cut, `quarter`, or the overlap."""
    if backbone.long_texts == "cut":
        return ""
    return "quarter" if backbone.window_overlap is None else str(backbone.window_overlap)


def find_source(config: BackboneConfig) -> BackboneSource:
    """The backbone that a configuration names, without loading its weights.

    Raises:
        ConfigError: see `find_backbone`.
    """
    return find_backbone(config.model_name_or_path, config.trust_remote_code, config.revision)


@lru_cache(maxsize=8)
def _own_prompts(path: str, revision: str | None) -> Path | None:
    """The prompts file of a model folder or hub repository; None where it has none."""
    if revision is None:
        return Path(path) / MODEL_FILE if (Path(path) / MODEL_FILE).is_file() else None
    return find_file(path, MODEL_FILE, revision)


def settle_dtype(config: RunConfig, source: BackboneSource, device: torch.device) -> tuple[RunConfig, list[str]]:
    """The configuration with `--backbone_dtype=auto` replaced by what it means here, and a line that says so."""
    if config.backbone.backbone_dtype != AUTO_DTYPE:
        return config, []
    picked, line = pick_dtype(source, device, config.backbone.is_trained)
    return config.with_values(backbone_dtype=picked), [line]


def find_prompts(config: BackboneConfig, source: BackboneSource) -> Prompts:
    """The prompts that a configuration asks for.

    Raises:
        ConfigError: see `read_prompts`.
    """
    own = _own_prompts(source.path, source.revision) if config.prompts == AUTO else None
    return read_prompts(config.prompts, own, config.exclude_prompt)


def prompt_notes(config: RunConfig, source: BackboneSource) -> list[str]:
    """A remark where the user's own file of prompts has none for the labelled task."""
    prompts, task = find_prompts(config.backbone, source), config.data.task
    if task in ("embedding", *EVALUATIONS) or not prompts.from_file or task in prompts.texts:
        return []
    known = ", ".join(prompts.texts) or "nothing"
    return [f"warning: --prompts={config.backbone.prompts} has no prompt named {task}, so none stands before the texts; it has {known}"]


def used_prompts(config: RunConfig, source: BackboneSource) -> UsedPrompts:
    """The prompts of the texts that a run trains on."""
    prompts = find_prompts(config.backbone, source)
    return prompts.for_pairs() if config.data.task == "embedding" else prompts.for_task(config.data.task)


def store_key(config: RunConfig, source: BackboneSource, texts: Texts, layer: str) -> StoreKey:
    """The key of a run's store of one hidden layer: everything that the stored states depend on."""
    return StoreKey(
        backbone=source.identity,
        layer=layer,
        max_length=max_tokens(config.backbone) or 0,
        backbone_dtype=config.backbone.backbone_dtype,
        store_dtype=config.store.store_dtype,
        texts=texts.sha256,
        prompts=texts.used.key,
        windows=windows_key(config.backbone),
    )


def open_tokens(
    config: RunConfig, source: BackboneSource, texts: Texts, device: torch.device, clock: Clock, team: Processes = ALONE
) -> TokenSource:
    """The states of all texts of a run. The backbone's weights are loaded only to encode; a complete store needs none.

    Raises:
        StateError: the backbone fails on a text, or its states are not finite. The message names split and row.
        StoreError: see `glot.states.store`.
    """
    if not config.store.precompute_hidden_states:
        backbone, ids = _load(config, source, texts, device, clock)
        backbone.reader.check(min(int(ids.lengths.max()), backbone.limit))  # a text that is too long fails before training starts
        return LiveTokens(backbone, ids, config.backbone.is_trained, ids.skips.tolist(), texts.where, _lora(config))
    root, layers = Path(config.store.store_dir), source.resolve_layers(config.backbone.hidden_layer)
    keys = [store_key(config, source, texts, layer) for layer in layers]
    if config.store.override_precompute or any(open_store(root, key) is None for key in keys):
        write_layers(config, source, texts, layers, device, clock, team)
    opened = [stored for key in keys if (stored := open_store(root, key)) is not None]
    for stored in opened:
        if stored.manifest.chunk_checksums is None:
            say(f"store {stored.folder}: has no checksums (an older version wrote it); glot store verify --adopt adds them")
        if stored.manifest.size_bytes <= CHECKED_FIRST:
            stored.check()  # before anything is trained on it; a larger one is checked while training reads it
    _check_widths(source, config.backbone.hidden_layer, layers, [stored.hidden_size for stored in opened])
    return opened[0] if len(opened) == 1 else LayeredTokens(opened)


def _lora(config: RunConfig) -> LoraOptions | None:
    """The adapter that a run trains."""
    given = config.backbone
    return LoraOptions(given.lora_r, given.lora_alpha, given.lora_targets, config.train.seed) if given.finetune_backbone == "lora" else None


def _check_widths(source: BackboneSource, asked: str, layers: Sequence[str], widths: list[int]) -> None:
    if len(set(widths)) > 1:
        listing = ", ".join(f"{layer} (d = {width})" for layer, width in zip(layers, widths, strict=True))
        raise ConfigError(f"--hidden_layer={asked}: {source.name} has layers of different widths, {listing}; name equal ones")


def write_layers(
    config: RunConfig,
    source: BackboneSource,
    texts: Texts,
    layers: Sequence[str],
    device: torch.device,
    clock: Clock,
    team: Processes = ALONE,
) -> None:
    """Complete the stores of several hidden layers of one backbone from one forward pass. The stores differ only in their layer."""
    root = Path(config.store.store_dir)
    wanted = {layer: store_key(config, source, texts, layer) for layer in layers}
    options = WriteOptions(config.store.resume, config.store.override_precompute, config.output.verbose, team)
    if not options.rebuild and all(open_store(root, key) is not None for key in wanted.values()):
        return
    backbone, ids = _load(config, source, texts, device, clock)
    widths = {layer: backbone.width(layer) for layer in wanted}
    with clock.phase("encode"):
        for width in dict.fromkeys(widths.values()):  # most backbones have one width
            names = [layer for layer in wanted if widths[layer] == width]
            plan = StorePlan(ids.kept_lengths, width, config.store.store_dtype)
            encode = partial(_encode_rows, backbone, ids, texts, names)
            write_stores(
                root, [wanted[layer] for layer in names], plan, encode, versions(), options, {**backbone.facts, "hidden_size": width}
            )


def _encode_rows(backbone: Backbone, ids: "TokenIds", texts: Texts, layers: list[str], rows: np.ndarray) -> Iterator[list[TokenBatch]]:
    """States of `rows`, which are sorted from long to short.

    Raises:
        StateError: see `Backbone.encode_sorted`; the message names the row.
    """
    try:
        yield from backbone.encode_sorted([ids[row] for row in rows], layers, ids.skips[rows].tolist())
    except StateError as error:
        raise StateError(error.problem, where="" if error.place is None else texts.where(int(rows[error.place]))) from error


def load_options(device: str) -> dict[str, str]:
    """Options of `from_pretrained` for a value of `--device`: `spread` distributes the layers over all accelerators."""
    return {"device_map": "auto"} if device == SPREAD else {}


def open_backbone(config: BackboneConfig, source: BackboneSource, layer: str, device: torch.device) -> Backbone:
    """Load the backbone that a configuration asks for."""
    return Backbone(source, max_tokens(config), config.backbone_dtype, layer, device, load_options(config.device), windows_key(config))


def _load(config: RunConfig, source: BackboneSource, texts: Texts, device: torch.device, clock: Clock) -> tuple[Backbone, "TokenIds"]:
    with clock.phase("load"):
        backbone = open_backbone(config.backbone, source, ",".join(source.resolve_layers(config.backbone.hidden_layer)), device)
    with clock.phase("encode"):
        return backbone, TokenIds(backbone, texts, config.output.verbose)


class TokenIds(Sequence[list[int]]):
    """Token ids of S texts in a memory-mapped temporary file, 4 bytes per token, instead of Python lists.

    Attributes:
        lengths: (S,) int64, tokens that the backbone reads of each text.
        skips: (S,) int64, how many of them belong to a prompt that is left out of pooling.

    Examples:
        >>> ids = TokenIds(backbone, texts)
        >>> backbone.encode([ids[0], ids[1]])
    """

    def __init__(self, backbone: Backbone, texts: Texts, verbose: bool = False) -> None:
        lengths: list[np.ndarray] = []
        skips: list[np.ndarray] = []
        place = 0
        spooled = disk_door(Path(tempfile.gettempdir()))
        with spooled, tempfile.TemporaryFile() as spool, counter("tokenise", "text", len(texts), verbose) as bar:
            stream = iter(texts)
            while part := list(itertools.islice(stream, TOKENISED_AT_ONCE)):
                prompts = [texts.prompt(place + offset) for offset in range(len(part))]
                ids, skipped = backbone.tokeniser.tokenise(part, backbone.max_length, prompts, texts.used.exclude)
                place += len(part)
                lengths.append(np.array([len(tokens) for tokens in ids]))
                skips.append(np.array(skipped))
                spool.write(np.concatenate([np.asarray(tokens, dtype=np.int32) for tokens in ids]).tobytes())  # `tofile` hides a full disk
                bar.update(len(part))
            spool.flush()
            self.lengths, self.skips = np.concatenate(lengths), np.concatenate(skips)
            self._ids = np.memmap(spool, dtype=np.int32, mode="r", shape=(int(self.lengths.sum()),))
        self._ends = np.cumsum(self.lengths)

    @property
    def kept_lengths(self) -> np.ndarray:
        """(S,) int64, pooled tokens of each text."""
        return self.lengths - self.skips

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: int) -> list[int]:  # type: ignore[override]
        end = int(self._ends[place])
        return self._ids[end - int(self.lengths[place]) : end].tolist()


def padded_tokens(lengths: list[int], times: float) -> int:
    """Tokens and padding of the batches of `Backbone.encode_sorted`: of texts of falling `lengths`, each of which stands for `times`."""
    texts, place, total = round(len(lengths) * times), 0, 0
    while place < texts:
        longest = lengths[min(int(place / times), len(lengths) - 1)]
        count = min(max(1, PADDED_TOKENS // longest), texts - place)
        place, total = place + count, total + count * longest
    return total


def estimate_store(config: RunConfig, source: BackboneSource, texts: Texts, device: torch.device) -> dict[str, object]:
    """The cost of storing the states of all texts, estimated from a sample: tokens, bytes, hours on this machine, free bytes."""
    count = min(len(texts), SAMPLED_TEXTS)
    places = set(np.random.default_rng(0).choice(len(texts), count, replace=False).tolist())
    drawn = [(text, texts.prompt(place)) for place, text in enumerate(texts) if place in places]
    backbone = open_backbone(config.backbone, source, ",".join(source.resolve_layers(config.backbone.hidden_layer)), device)
    ids = backbone.tokenise(*zip(*drawn, strict=True))
    timed = sorted(ids[:: max(1, count // TIMED_TEXTS)], key=len, reverse=True)
    layers = backbone.layers
    list(backbone.encode_sorted(timed[-8:], layers))  # warm-up: the first pass allocates memory
    clock = Clock()
    with clock.phase("encode"):
        for batches in backbone.encode_sorted(timed, layers):
            batches[0].tokens.cpu()  # wait for an accelerator to finish
    tokens = sum(map(len, ids)) * len(texts) / count
    lengths = sorted(map(len, ids), reverse=True)
    # few texts, sorted, differ more in length than neighbours among all: what counts is the padded tokens of each
    hours = clock.seconds["encode"] / 3600 * padded_tokens(lengths, len(texts) / count) / padded_tokens(list(map(len, timed)), 1.0)
    root = Path(config.store.store_dir).absolute()
    free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free
    return {
        "sentences": len(texts),
        "sampled": count,
        "tokens": round(tokens),
        "bytes": round(tokens) * backbone.hidden_size * DTYPES[config.store.store_dtype].itemsize,
        "free_bytes": free,
        "tokens_per_second": round(tokens / (3600 * hours), 1),
        "hours": hours,
    }
