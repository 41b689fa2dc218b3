"""A loaded backbone: text to token states, stored later or computed when asked for.

Padding is to the right and exists only here: what leaves this module is packed.
"""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModel

from glot.backbone.source import LAYERS_IN_MEAN, BackboneSource, first_line, load_tokenizer
from glot.errors import ConfigError
from glot.types import TokenBatch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "autocast": torch.float32}
"""`--backbone_dtype` -> precision of the weights; with autocast torch takes the products in bfloat16."""
PADDED_TOKENS = 4096
"""Tokens of a backbone batch, padding included: 32 texts of 128."""


class Backbone:
    """A loaded model with its tokenizer.

    Args:
        source: from `find_backbone`.
        max_length: tokens a text is cut to; None = the model's own limit.
        dtype: a name of `DTYPES`.
        layer: from `source.resolve_layer`.
        device: where texts go in and packed states come out.
        spread: share the layers among all accelerators of the machine, and its memory if need be (accelerate's `device_map="auto"`).

    Raises:
        ConfigError: the weights cannot be read, no padding token can be chosen, `max_length` is more than the model has positions for.
    """

    def __init__(
        self, source: BackboneSource, max_length: int | None, dtype: str, layer: str, device: torch.device, spread: bool = False
    ) -> None:
        self.source, self.layer, self.device = source, layer, device
        self.autocast = dtype == "autocast"
        self.tokenizer = load_tokenizer(source)
        limit = self.position_limit
        if max_length is not None and max_length > limit:
            raise ConfigError(f"--max_length={max_length}: {source.name} reads at most {limit} tokens")
        self.max_length = max_length or limit
        model = self._load_weights(dtype, {"device_map": "auto"} if spread else {})
        self.model = (model if spread else model.to(device)).eval().requires_grad_(False)

    def _load_weights(self, dtype: str, where: dict[str, str]) -> Any:
        source = self.source
        options = {"dtype": DTYPES[dtype], "trust_remote_code": source.trust_remote_code, "output_loading_info": True, **where}
        try:
            model, report = AutoModel.from_pretrained(source.path, **options)
        except (OSError, ValueError, SafetensorError) as error:
            raise ConfigError(f"--model_name_or_path={source.name}: its weights cannot be loaded ({first_line(error)})") from error
        missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
        if missing:  # they would be random; BERT's own pooler is not used
            raise ConfigError(
                f"--model_name_or_path={source.name}: the checkpoint lacks {len(missing)} of the model's tensors ({missing[0]}, ...)"
            )
        return model

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.source.config.get_text_config().hidden_size)

    @property
    def position_limit(self) -> int:
        """Most tokens that the model can read: the tokenizer's word where it has one, else the number of positions."""
        positions = getattr(self.source.config.get_text_config(), "max_position_embeddings", 1 << 30)
        return min(int(self.tokenizer.model_max_length), int(positions))

    def tokenise(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to `max_length`; empty where a text has no token at all."""
        options = {"truncation": True, "padding": False, "max_length": self.max_length, "return_attention_mask": False}
        return self.tokenizer(texts, **options)["input_ids"]

    def encode(self, ids: list[list[int]]) -> TokenBatch:
        """Token states of B texts given as ids: packed (N, d) on the model's device, in the model's precision."""
        return self.encode_layers(ids, [self.layer])[0]

    def encode_layers(self, ids: list[list[int]], layers: list[str]) -> list[TokenBatch]:
        """The same for several layers, from one forward pass."""
        lengths = torch.tensor([len(tokens) for tokens in ids])
        mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
        padded = torch.full(mask.shape, self.tokenizer.pad_token_id)
        padded[mask] = torch.tensor([token for tokens in ids for token in tokens])
        mask = mask.to(self.device)
        return [TokenBatch.from_padded(hidden, mask) for hidden in self.forward(padded.to(self.device), mask, layers)]

    def forward(self, ids: Tensor, mask: Tensor, layers: list[str]) -> list[Tensor]:
        """Ids (B, L), mask (B, L) -> hidden states (B, L, d) of each layer; `layers` as `resolve_layer` names them."""
        last = str(self.source.num_layers)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=layers != [last], **self._options)

        def states(layer: str) -> Tensor:
            if layer == last:
                return output.last_hidden_state
            if layer == "mean4":
                return torch.stack([hidden.to(mask.device) for hidden in output.hidden_states[-LAYERS_IN_MEAN:]]).mean(0)
            return output.hidden_states[int(layer)]

        return [states(layer).to(mask.device) for layer in layers]  # a spread model leaves them where the layer is

    @cached_property
    def _options(self) -> dict[str, Any]:
        return {"use_cache": False} if self.source.is_decoder else {}

    def encode_sorted(self, ids: list[list[int]], layers: list[str]) -> Iterator[list[TokenBatch]]:
        """States of texts sorted from long to short, each layer's of at most `PADDED_TOKENS` at a time, without gradient.

        How texts are batched shifts the last bits of their states, so it follows from the texts and from no flag.
        """
        start = 0
        while start < len(ids):
            end = start + max(1, PADDED_TOKENS // len(ids[start]))
            with torch.inference_mode():
                yield self.encode_layers(ids[start:end], layers)
            start = end

    def read_plainly(self, text: str) -> tuple[TokenBatch, list[str], list[tuple[int, int]]]:
        """One text without special tokens and uncut (up to the model's limit): states, tokens in words, their places in the text."""
        options = {"add_special_tokens": False, "truncation": True, "max_length": self.position_limit}
        coded = self.tokenizer(text, return_offsets_mapping=True, **options)
        with torch.inference_mode():
            states = self.encode([coded["input_ids"]])
        spans = [(int(start), int(end)) for start, end in coded["offset_mapping"]]
        return states.with_tokens(states.tokens.float()), [text[start:end].strip() for start, end in spans], spans

    def copy_to(self, device: torch.device) -> "Backbone":
        """The same model on another device; the tokenizer is shared."""
        other = copy.copy(self)
        other.model, other.device = copy.deepcopy(self.model).to(device), device
        return other

    def save(self, folder: Path) -> None:
        """Write model and tokenizer so that any tool of the library loads them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class LiveTokens:
    """A TokenSource that runs the backbone whenever rows are asked for.

    With `trainable=True` states carry gradient and dropout is on wherever gradients are enabled (training), and neither is so
    elsewhere (evaluation).
    """

    def __init__(self, backbone: Backbone, ids: list[list[int]], trainable: bool = False) -> None:
        self.backbone = backbone
        self.hidden_size = backbone.hidden_size
        self.trainable = trainable
        self._ids = ids
        backbone.model.requires_grad_(trainable)

    def __len__(self) -> int:
        return len(self._ids)

    def gather(self, rows: np.ndarray) -> TokenBatch:
        """The states of `rows (B,)`: float32 (N, d) on the backbone's device."""
        training = self.trainable and torch.is_grad_enabled()
        self.backbone.model.train(training)
        with nullcontext() if training else torch.no_grad():
            batch = self.backbone.encode([self._ids[row] for row in rows])
        return batch.with_tokens(batch.tokens.float())
