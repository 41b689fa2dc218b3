"""A loaded backbone: text to token states. Padding is to the right and exists only inside; what leaves is packed."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from glot.errors import ConfigError, StateError, library_door, reason
from glot.hub import explain
from glot.states.backbone.facts import remember_facts
from glot.states.backbone.source import BackboneSource, lone_encoder
from glot.states.backbone.states import LEAST_PROBE, MOST_AT_LOAD, ReaderOptions, StateReader
from glot.states.backbone.tokenizer import NO_LIMIT, Tokeniser
from glot.types import TokenBatch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "autocast": torch.float32}
"""`--backbone_dtype` -> precision of the weights; with autocast torch takes the products in bfloat16."""
PADDED_TOKENS = 4096
"""Tokens of a backbone batch, padding included: 32 texts of 128."""
POSITION_TABLES = ("position_embeddings", "embed_positions", "positions_embed", "wpe")
"""How the library's models call their tables of absolute positions."""


class Backbone:
    """A loaded model with its tokenizer.

    Args:
        source: from `find_backbone`.
        max_length: tokens a text is cut to; None = the model's own limit.
        dtype: a name of `DTYPES`.
        layer: from `source.resolve_layer`.
        device: where texts go in and packed states come out.
        load_options: further options of the library's `from_pretrained`; with `device_map` the model stays where that puts it.

    Attributes:
        max_length: tokens a text is cut to.
        limit: most tokens that tokenizer and model can read.

    Raises:
        ConfigError: the weights cannot be read or are not the model's, or `max_length` is more than the model reads.
        StateError: the model gives no state per token.

    Example:
        source = find_backbone("minilm")
        backbone = Backbone(source, 128, "float32", source.resolve_layer("-1"), torch.device("cpu"))
        batch = backbone.encode(backbone.tokenise(["a text"]))
    """

    def __init__(
        self,
        source: BackboneSource,
        max_length: int | None,
        dtype: str,
        layer: str,
        device: torch.device,
        load_options: dict[str, Any] | None = None,
    ) -> None:
        self.source, self.layer, self.dtype, self.device = source, layer, dtype, device
        self.tokeniser = Tokeniser(source)
        claim = min(self.tokeniser.limit, source.position_claim or NO_LIMIT)
        self._check_length(max_length, claim)
        options = load_options or {}
        model = load_weights(source, dtype, options)
        self.model = (model if "device_map" in options else model.to(device)).eval().requires_grad_(False)
        self.tokeniser.rows = embedding_rows(self.model) or self.tokeniser.rows
        try:
            self.reader = self._make_reader()
        except StateError as error:
            kind = source.config.model_type
            raise ConfigError(f"{error.problem}; name a model of texts (this one is of the kind {kind})") from error
        self.limit = self._find_limit(min(claim, position_rows(self.model)), max_length)
        self._check_length(max_length, self.limit)
        self.max_length = max_length or self.limit
        if source.identity:
            remember_facts(source.identity, {"is_causal": self.reader.is_causal})

    def _make_reader(self) -> StateReader:
        rows = self.tokeniser.rows or len(self.tokeniser.tokenizer)
        return StateReader(
            self.model, ReaderOptions(self.source.name, self.source.num_layers, self.tokeniser.fill_token, rows, self.dtype == "autocast")
        )

    def _check_length(self, max_length: int | None, limit: int) -> None:
        if max_length is not None and max_length > limit:
            raise ConfigError(f"--max_length={max_length}: {self.source.name} reads at most {limit} tokens")

    def _find_limit(self, claim: int, max_length: int | None) -> int:
        """The largest length up to `claim` that the model reads: tried at load as far as a run may need it, beyond when such texts come."""
        needed = min(claim, MOST_AT_LOAD, max(max_length or claim, LEAST_PROBE))
        if self.reader.fits(needed):
            self.reader.check(needed)
            return claim
        low, high = 0, needed - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.reader.fits(middle) else (low, middle - 1)
        if not low:
            self.reader.check(needed)  # raises what the model raised
        return low

    @property
    def tokenizer(self) -> Any:
        """The library's tokenizer."""
        return self.tokeniser.tokenizer

    @property
    def hidden_size(self) -> int:
        """D of the layer, by what the model gave."""
        return self.width(self.layer)

    def width(self, layer: str) -> int:
        """D of one layer: it need not be the same for all.

        Raises:
            ConfigError: the model does not give this layer.
        """
        return self.reader.width(layer)

    @property
    def is_causal(self) -> bool:
        """Whether a token's state is independent of the tokens behind it, as measured."""
        return self.reader.is_causal

    @property
    def facts(self) -> dict[str, Any]:
        """What was found out about the loaded model, for `result.json`."""
        return {
            "kind": "decoder" if self.is_causal else "encoder",
            "hidden_size": self.hidden_size,
            "max_length": self.max_length if self.max_length < NO_LIMIT else None,
            "batches": "equal lengths" if self.reader.equal_lengths else "padded",
        }

    def tokenise(self, texts: Sequence[str], prompts: Sequence[str] | str = "") -> list[list[int]]:
        """Token ids of each text behind its prompt, special tokens included, cut to `max_length`; never none (`Tokeniser.tokenise`)."""
        return self.tokeniser.tokenise(texts, self.max_length, prompts)[0]

    def encode(self, ids: list[list[int]], skips: Sequence[int] | None = None) -> TokenBatch:
        """Token states of B texts given as ids: packed (N, d) on the model's device, in the model's precision.

        Args:
            ids: of each text, never none.
            skips: how many leading tokens of each text are read but left out.
        """
        return self.encode_layers(ids, [self.layer], skips)[0]

    def encode_layers(self, ids: list[list[int]], layers: list[str], skips: Sequence[int] | None = None) -> list[TokenBatch]:
        """The same for several layers, from one forward pass."""
        batches = self.reader.read(ids, layers)
        return batches if skips is None or not any(skips) else [drop_leading(batch, skips) for batch in batches]

    def encode_sorted(self, ids: list[list[int]], layers: list[str], skips: Sequence[int] | None = None) -> Iterator[list[TokenBatch]]:
        """States of texts sorted from long to short, each layer's of at most `PADDED_TOKENS` at a time, without gradient.

        How texts are batched shifts the last bits of their states, so it follows from the texts and from no flag.

        Raises:
            StateError: see `StateReader.read`; `place` is the text's place in `ids`.
        """
        start = 0
        while start < len(ids):
            end = start + max(1, PADDED_TOKENS // len(ids[start]))
            try:
                with torch.inference_mode():
                    yield self.encode_layers(ids[start:end], layers, None if skips is None else skips[start:end])
            except StateError as error:
                raise StateError(error.problem, None if error.place is None else start + error.place) from error
            start = end

    def read_plainly(self, text: str) -> tuple[TokenBatch, list[str], list[tuple[int, int]]]:
        """One text without special tokens and uncut (up to the model's limit): states, tokens in words, their places in the text."""
        ids, spans = self.tokeniser.read_plainly(text, self.limit)
        with torch.inference_mode():
            states = self.encode([ids])
        return states.with_tokens(states.tokens.float()), [text[start:end].strip() for start, end in spans], spans

    def copy_to(self, device: torch.device) -> "Backbone":
        """The same model on another device; the tokenizer is shared."""
        other = copy.copy(self)
        other.model, other.device = copy.deepcopy(self.model).to(device), device
        other.reader = other._make_reader()
        return other

    def save(self, folder: Path) -> None:
        """Write model and tokenizer so that any tool of the library loads them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def drop_leading(batch: TokenBatch, skips: Sequence[int]) -> TokenBatch:
    """The batch without the first `skips (B,)` tokens of each text."""
    dropped = torch.tensor(list(skips))
    place = torch.arange(batch.tokens.shape[0]) - torch.repeat_interleave(batch.ptr[:-1], batch.lengths)
    kept = place >= torch.repeat_interleave(dropped, batch.lengths)
    return TokenBatch.from_lengths(batch.tokens[kept.to(batch.tokens.device)], batch.lengths - dropped)


def load_weights(source: BackboneSource, dtype: str, where: dict[str, Any] | None = None) -> Any:
    """The library's model of a backbone, with every tensor that its states need taken from the checkpoint.

    Args:
        source: from `find_backbone`.
        dtype: a name of `DTYPES`.
        where: further options of `from_pretrained`.

    Raises:
        ConfigError: not readable, of another size than the configuration says, or without some of the model's tensors.
    """

    def describe(error: Exception) -> str:
        found = explain(error, source.revision) or f"its weights cannot be loaded ({reason(error)})"
        return f"--model_name_or_path={source.name}: {found}"

    options = {"dtype": DTYPES[dtype], "output_loading_info": True, "ignore_mismatched_sizes": True, **source.options, **(where or {})}
    with library_door(ConfigError, describe):
        model, report = (lone_encoder(source.config) or AutoModel).from_pretrained(source.path, **options)
    for name, found, expected in report["mismatched_keys"]:
        raise ConfigError(
            f"--model_name_or_path={source.name}: {name} is {tuple(found)} in the weights and {tuple(expected)} by the configuration; "
            "the two files do not belong together"
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:  # they would be random; BERT's own pooler is not used
        raise ConfigError(
            f"--model_name_or_path={source.name}: the checkpoint lacks {len(missing)} of the model's tensors ({missing[0]}, ...)"
        )
    return model


def embedding_rows(model: nn.Module) -> int | None:
    """Rows of the token embedding; None where the model does not say where it is."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    weight = getattr(table, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) else None


def position_rows(model: nn.Module) -> int:
    """Most tokens that the model's tables of absolute positions can hold; `NO_LIMIT` without one.

    RoBERTa and its kin count from behind the padding id, OPT from an offset of its own: their tables hold that much less.
    """
    rooms = []
    for name, table in model.named_modules():
        if isinstance(table, nn.Embedding) and name.rpartition(".")[2] in POSITION_TABLES:
            behind = getattr(table, "offset", 0 if table.padding_idx is None else table.padding_idx + 1)
            rooms.append(table.num_embeddings - int(behind))
    return min((room for room in rooms if room > 0), default=NO_LIMIT)
