"""GLOT: sentence vectors from the token states of a frozen language model.

import glot
encoder = glot.load("runs/my-run")
vectors = encoder.encode(["one text", "another"])     # (S, D) float32
encoder.similarity(vectors, vectors)                   # (S, S) cosines
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glot.encoder import SentenceEncoder

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(checkpoint: str, **options: Any) -> "SentenceEncoder":
    """The encoder of a finished run; see `glot.encoder.load_encoder` for the options (max_length, device, backbone_dtype)."""
    from glot.encoder import load_encoder  # late: it imports torch, which `--help` does without

    return load_encoder(checkpoint, **options)
