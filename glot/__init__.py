"""GLOT: sentence vectors and decisions from the token states of a frozen language model.

import glot
run = glot.train(task="cola", pooler="glot", tau=0.6)     # every flag of main.py as a keyword
run.metrics, run.predict(["The book was read."])
encoder = glot.load("runs/my-run")
vectors = encoder.encode(["one text", "another"])         # (S, D) float32
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glot.api import Run, encode, load, open_store, predict, read_study, train
    from glot.nn.graph import TokenGraph
    from glot.nn.pooler import Pooler
    from glot.nn.poolers.attention import LatentPooler, PmaPooler
    from glot.nn.poolers.fixed import ClsPooler, MaxPooler, MeanPooler, WeightedMeanPooler
    from glot.nn.poolers.glot import GlotPooler
    from glot.nn.poolers.scored import AdaPooler, MlpPooler
    from glot.nn.segment import segment_max, segment_mean, segment_softmax, segment_sum
    from glot.types import TokenBatch

__version__ = "0.1.0"
__all__ = [
    "AdaPooler",
    "ClsPooler",
    "GlotPooler",
    "LatentPooler",
    "MaxPooler",
    "MeanPooler",
    "MlpPooler",
    "PmaPooler",
    "Pooler",
    "Run",
    "TokenBatch",
    "TokenGraph",
    "WeightedMeanPooler",
    "__version__",
    "encode",
    "load",
    "open_store",
    "predict",
    "read_study",
    "segment_max",
    "segment_mean",
    "segment_softmax",
    "segment_sum",
    "train",
]
_HOMES = {
    "glot.api": ("Run", "encode", "load", "open_store", "predict", "read_study", "train"),
    "glot.types": ("TokenBatch",),
    "glot.nn.graph": ("TokenGraph",),
    "glot.nn.pooler": ("Pooler",),
    "glot.nn.poolers.attention": ("LatentPooler", "PmaPooler"),
    "glot.nn.poolers.fixed": ("ClsPooler", "MaxPooler", "MeanPooler", "WeightedMeanPooler"),
    "glot.nn.poolers.glot": ("GlotPooler",),
    "glot.nn.poolers.scored": ("AdaPooler", "MlpPooler"),
    "glot.nn.segment": ("segment_max", "segment_mean", "segment_softmax", "segment_sum"),
}
"""Module -> the public names that it holds. They are imported on first use: torch takes a second, `--help` does without."""


def __getattr__(name: str) -> Any:
    """A public name, imported now."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'glot' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
