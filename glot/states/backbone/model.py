"""Backbone, a loaded language model: texts to packed token states. Padding, to the right, exists only inside."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glot.errors import ConfigError, StateError, disk_door, lacks_memory
from glot.progress import say, warn
from glot.states.backbone.facts import remember_facts
from glot.states.backbone.source import BackboneSource
from glot.states.backbone.states import LEAST_PROBE, MOST_AT_LOAD, ReaderOptions, StateReader
from glot.states.backbone.tokenizer import NO_LIMIT, Tokeniser
from glot.states.backbone.weights import DTYPES, embedding_rows, load_weights, position_rows
from glot.states.backbone.windows import Windows, make_windows
from glot.types import TokenBatch
from glot.words import counted

OTHER_INPUTS = ("pixel_values", "input_values", "input_features")
"""Inputs of image and audio models."""
QUARTERS = "quarter"
"""Windows that share a quarter of the model's limit."""
PADDED_TOKENS = 4096
"""Most tokens of one batch, padding included: 32 texts of 128 tokens."""


class Backbone:
    """A loaded model with its tokenizer.

    Args:
        source: from `find_backbone`.
        max_length: number of tokens that a text is cut to; None = the model's own limit.
        dtype: a name of `DTYPES`.
        layer: from `source.resolve_layer`, or several of them with commas between: states are then side by side, (N, m d).
        device: device of inputs and packed states.
        load_options: further options of `from_pretrained`; with `device_map` the model stays where that puts it.
        windows: how texts beyond `limit` are read: empty = cut, else in windows that share so many tokens (`quarter` = of the limit).

    Attributes:
        max_length: number of tokens that a text is cut to.
        limit: most tokens that tokenizer and model can read.

    Raises:
        ConfigError: the weights cannot be read or are not the model's, `max_length` is more than the model reads, or the model gives no
            state per token.
        StateError: the model fails on a batch of the check at load.

    Examples:
        >>> source = find_backbone("minilm")
        >>> backbone = Backbone(source, 128, "float32", source.resolve_layer("-1"), torch.device("cpu"))
        >>> batch = backbone.encode(backbone.tokenise(["a text"]))
    """

    def __init__(
        self,
        source: BackboneSource,
        max_length: int | None,
        dtype: str,
        layer: str,
        device: torch.device,
        load_options: dict[str, Any] | None = None,
        windows: str = "",
    ) -> None:
        self.source, self.layer, self.dtype, self.device, self.windows = source, layer, dtype, device, windows
        self.tokeniser = Tokeniser(source)
        claim = min(self.tokeniser.limit, source.position_claim or NO_LIMIT)
        self.check_length(max_length, claim)
        options = load_options or {}
        model = self._load_weights(options)
        self.model = (model if "device_map" in options else self._placed(model)).eval().requires_grad_(False)
        self.tokeniser.rows = embedding_rows(self.model) or self.tokeniser.rows
        self.reader = self._open_reader()
        self.limit = self._find_limit(min(claim, position_rows(self.model)), max_length)
        self.check_length(max_length, self.limit)
        self.max_length = max_length or self.longest
        self._pieces = self._make_windows() if windows else None
        if windows and self.max_length <= self.limit:
            reads = "any number of" if self.limit == NO_LIMIT else f"{self.limit:,}"
            say(f"--long_texts=windows: {source.name} reads {reads} tokens at once, and --max_length={self.max_length} are no more")
        if source.identity:
            remember_facts(source.identity, {"is_causal": self.reader.is_causal})

    def _load_weights(self, options: dict[str, Any]) -> Any:
        """The model object of transformers, with the adapter of `source` added to its weights."""
        if self.source.merge is None:
            return load_weights(self.source, self.dtype, options)
        model = load_weights(self.source, "float32", options)  # half precision would round the adapter away while it is added
        merged = self.source.merge(model)
        for weight in merged.parameters():  # buffers, such as rotary frequencies, stay in float32 as transformers loads them
            weight.data = weight.data.to(DTYPES[self.dtype])
        return merged

    def _placed(self, model: Any) -> Any:
        """The model on its device."""
        try:
            return model.to(self.device)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            raise ConfigError(
                f"--model_name_or_path={self.source.name}: no room for its weights on {self.device} in {self.dtype}; "
                "use --backbone_dtype=bfloat16, or --device=spread or cpu"
            ) from error

    def _open_reader(self) -> StateReader:
        """The StateReader of the loaded model.

        Raises:
            ConfigError: the model cannot run at all. The message gives the remedy that the error points to.
        """
        try:
            return self._make_reader()
        except StateError as error:
            inputs = inspect.signature(self.model.forward).parameters
            kind = self.source.config.model_type
            if "input_ids" not in inputs and any(name in inputs for name in OTHER_INPUTS):
                way_out = f"it reads no token ids; name a model of texts (this one is of the kind {kind})"
            elif lacks_memory(error):
                way_out = f"make room on {self.device}"
            elif self.dtype != "float32" and "type" in str(error.__cause__):
                way_out = f"use --backbone_dtype=float32 in place of {self.dtype}"
            else:
                way_out = "name another model"
            raise ConfigError(f"{error.problem}; {way_out}") from error

    def _make_reader(self) -> StateReader:
        rows = self.tokeniser.rows or len(self.tokeniser.tokenizer)
        return StateReader(
            self.model, ReaderOptions(self.source.name, self.source.num_layers, self.tokeniser.fill_token, rows, self.dtype == "autocast")
        )

    @property
    def longest(self) -> int:
        """Most tokens that a text can keep: the model's limit, or any number in windows."""
        return NO_LIMIT if self.windows else self.limit

    def _make_windows(self) -> Windows:
        overlap = None if self.windows == QUARTERS else int(self.windows)
        return make_windows(self.source.name, self.limit, overlap, self.tokeniser.special_ends())

    def check_length(self, max_length: int | None, limit: int = NO_LIMIT, flag: str = "--max_length") -> None:
        """Refuse a length that leaves no room for a text, or that exceeds a limit.

        Raises:
            ConfigError: it does.
        """
        special = self.tokeniser.tokenizer.num_special_tokens_to_add(pair=False)
        if max_length is not None and max_length <= special:  # transformers would not cut at all
            raise ConfigError(
                f"{flag}={max_length}: {self.source.name} puts {counted(special, 'token')} around a text; must be at least {special + 1}"
            )
        if max_length is not None and max_length > limit and not self.windows:
            raise ConfigError(f"--max_length={max_length}: {self.source.name} reads at most {limit} tokens")

    def _find_limit(self, claim: int, max_length: int | None) -> int:
        """The largest length up to `claim` that the model reads.

        The length that a run may need is tried now, up to `MOST_AT_LOAD`. Longer ones are tried when such texts come.
        """
        needed = min(claim, MOST_AT_LOAD, max(max_length or claim, LEAST_PROBE))
        failure = self.reader.failure(needed)
        if failure is None:
            self.reader.check(needed)
            return claim
        if "dtype" in str(failure.__cause__) or "scalar type" in str(failure.__cause__):  # not caused by the length
            raise ConfigError(f"{failure.problem}; use --backbone_dtype=float32 in place of {self.dtype}") from failure
        if lacks_memory(failure):
            raise ConfigError(f"{failure.problem}; make room on {self.device}, or set a smaller --max_length") from failure
        low, high = 0, needed - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (low, middle - 1) if self.reader.failure(middle) else (middle, high)
        if not low:
            raise ConfigError(f"{failure.problem}; name another model") from failure
        warn(f"{self.source.name}: reads at most {counted(low, 'token')}, fewer than its files say")
        self.reader.check(low)
        return low

    @property
    def tokenizer(self) -> Any:
        """The tokenizer object of transformers."""
        return self.tokeniser.tokenizer

    @property
    def hidden_size(self) -> int:
        """The width d of the states, as measured; of several layers that of all together.

        Raises:
            ConfigError: layers of different widths.
        """
        widths = {layer: self.width(layer) for layer in self.layers}
        if len(set(widths.values())) > 1:
            listing = ", ".join(f"{layer} (d = {width})" for layer, width in widths.items())
            raise ConfigError(
                f"--hidden_layer={self.layer}: layers of {self.source.name} differ in width: {listing}; name some of one width"
            )
        return sum(widths.values())

    @property
    def layers(self) -> list[str]:
        """The hidden layers whose states it gives."""
        return self.layer.split(",")

    def width(self, layer: str) -> int:
        """The width d of one layer; layers may differ in width.

        Raises:
            ConfigError: the model does not give this layer.
        """
        return self.reader.width(layer)

    @property
    def is_causal(self) -> bool:
        """Whether a token's state is independent of later tokens, as measured."""
        return self.reader.is_causal

    @property
    def facts(self) -> dict[str, Any]:
        """Facts measured on the loaded model, for `result.json`."""
        return {
            "kind": "decoder" if self.is_causal else "encoder",
            "hidden_size": self.hidden_size,
            "max_length": self.max_length if self.max_length < NO_LIMIT else None,
            "batches": "equal lengths" if self.reader.equal_lengths else "padded",
        }

    def tokenise(self, texts: Sequence[str], prompts: Sequence[str] | str = "") -> list[list[int]]:
        """Token ids of each text with its prompt, special tokens included, cut to `max_length`; see `Tokeniser.tokenise`."""
        return self.tokeniser.tokenise(texts, self.max_length, prompts)[0]

    def encode(self, ids: list[list[int]], skips: Sequence[int] | None = None) -> TokenBatch:
        """Token states of B texts given as ids: packed (N, d) on the model's device, in the model's precision.

        Args:
            ids: token ids of each text, at least one per text.
            skips: number of leading tokens of each text that are read but left out.
        """
        return join_layers(self.encode_layers(ids, self.layers, skips))

    def encode_layers(self, ids: list[list[int]], layers: list[str], skips: Sequence[int] | None = None) -> list[TokenBatch]:
        """`encode` for several layers, from one forward pass."""
        is_longer = self._pieces is not None and max(map(len, ids)) > self.limit
        batches = self._read_windows(ids, layers) if is_longer else self.reader.read(ids, layers)
        return batches if skips is None or not any(skips) else [drop_leading(batch, skips) for batch in batches]

    def _read_windows(self, ids: list[list[int]], layers: list[str]) -> list[TokenBatch]:
        """`StateReader.read` of texts of which some are longer than the model reads.

        Raises:
            StateError: `place` is the text's index in `ids`.
        """
        assert self._pieces is not None
        pieces = [(place, part) for place, text in enumerate(ids) for part in self._split(text)]
        states: list[list[list[Tensor]]] = [[[] for _ in ids] for _ in layers]
        at_once = max(1, PADDED_TOKENS // max(len(part) for _, part in pieces))
        for start in range(0, len(pieces), at_once):
            group = pieces[start : start + at_once]
            try:
                batches = self.reader.read([part for _, part in group], layers)
            except StateError as error:
                raise StateError(error.problem, None if error.place is None else group[error.place][0]) from error
            for layer, batch in zip(states, batches, strict=True):
                for (place, _), part in zip(group, batch.tokens.split(batch.lengths.tolist()), strict=True):
                    layer[place].append(part)
        lengths = torch.tensor([len(text) for text in ids])
        joined = [
            [parts[0] if len(parts) == 1 else self._pieces.join(parts, len(text)) for parts, text in zip(layer, ids, strict=True)]
            for layer in states
        ]
        return [TokenBatch.from_lengths(torch.cat(layer), lengths) for layer in joined]

    def _split(self, text: list[int]) -> list[list[int]]:
        return [text] if len(text) <= self.limit or self._pieces is None else self._pieces.split(text)

    def encode_sorted(self, ids: list[list[int]], layers: list[str], skips: Sequence[int] | None = None) -> Iterator[list[TokenBatch]]:
        """States of texts sorted from long to short, one batch per layer of at most `PADDED_TOKENS` at a time, without gradient.

        Batching changes the last bits of states, so it depends on the texts alone, not on any flag.

        Raises:
            StateError: see `StateReader.read`; `place` is the text's index in `ids`.
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
        """One text without special tokens, cut only at the model's limit: states, tokens as strings, their spans in the text."""
        ids, spans = self.tokeniser.read_plainly(text, self.limit)
        with torch.inference_mode():
            states = self.encode([ids])
        return states.with_tokens(states.tokens.float()), [text[start:end].strip() for start, end in spans], spans

    def copy_to(self, device: torch.device) -> "Backbone":
        """A copy of the model on another device; the tokenizer is shared."""
        other = copy.copy(self)
        other.model, other.device = copy.deepcopy(self.model).to(device), device
        other.reader = other._make_reader()
        return other

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in transformers' format."""
        with disk_door(folder):
            self.model.save_pretrained(folder)
            self.tokeniser.save(folder)


def join_layers(layers: list[TokenBatch]) -> TokenBatch:
    """The states of several layers of the same texts side by side: m batches (N, d) -> (N, m d)."""
    return layers[0] if len(layers) == 1 else layers[0].with_tokens(torch.cat([layer.tokens for layer in layers], 1))


def drop_leading(batch: TokenBatch, skips: Sequence[int]) -> TokenBatch:
    """The batch without the first `skips (B,)` tokens of each text."""
    dropped = torch.tensor(list(skips))
    place = torch.arange(batch.tokens.shape[0]) - torch.repeat_interleave(batch.ptr[:-1], batch.lengths)
    kept = place >= torch.repeat_interleave(dropped, batch.lengths)
    return TokenBatch.from_lengths(batch.tokens[kept.to(batch.tokens.device)], batch.lengths - dropped)
