"""The backbone: find a language model, load it, tokenise, run it. The only package that imports transformers."""

from glot.states.backbone.adapters import LoraOptions, need_adapters, with_adapter
from glot.states.backbone.devices import SPREAD, pick_device
from glot.states.backbone.embedded import find_embedded
from glot.states.backbone.facts import recall_facts
from glot.states.backbone.hashes import file_sha256
from glot.states.backbone.live import LiveTokens
from glot.states.backbone.model import PADDED_TOKENS, Backbone, join_layers
from glot.states.backbone.naming import NamedTokens, name_tokens
from glot.states.backbone.precision import AUTO, pick_dtype, try_dtypes
from glot.states.backbone.sizes import count_weights
from glot.states.backbone.source import (
    BackboneSource,
    find_backbone,
    identity_of,
    quiet_library,
)
from glot.states.backbone.tokenizer import Tokeniser, kept_characters
from glot.states.backbone.weights import DTYPES

__all__ = [
    "AUTO",
    "DTYPES",
    "PADDED_TOKENS",
    "SPREAD",
    "Backbone",
    "BackboneSource",
    "LiveTokens",
    "LoraOptions",
    "NamedTokens",
    "Tokeniser",
    "count_weights",
    "file_sha256",
    "find_backbone",
    "find_embedded",
    "identity_of",
    "join_layers",
    "kept_characters",
    "name_tokens",
    "need_adapters",
    "pick_device",
    "pick_dtype",
    "quiet_library",
    "recall_facts",
    "try_dtypes",
    "with_adapter",
]
