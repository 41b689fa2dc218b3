"""The frozen language model: find it, load it, tokenise, run it. The only door to transformers."""

from glot.backbone.model import DTYPES, Backbone, LiveTokens
from glot.backbone.source import SPREAD, BackboneSource, file_sha256, find_backbone, find_embedded, kept_characters, pick_device

__all__ = [
    "DTYPES",
    "SPREAD",
    "Backbone",
    "BackboneSource",
    "LiveTokens",
    "file_sha256",
    "find_backbone",
    "find_embedded",
    "kept_characters",
    "pick_device",
]
