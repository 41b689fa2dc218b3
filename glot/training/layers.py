"""What a run on several hidden layers adds: their standardisation before training, the weights that they got after it."""

import numpy as np
import torch

from glot.data.loader import TextIndex
from glot.data.pair_rows import PairData
from glot.data.tasks import TaskData
from glot.nn.layers import LayeredPooler
from glot.nn.pooler import Pooler
from glot.settings.config import RunConfig
from glot.training.result import Result
from glot.types import Texts, TokenSource

SAMPLED_TOKENS, SAMPLED_TEXTS, AT_ONCE = 4096, 2048, 32
"""Training tokens that medians and ranges are taken from, most texts that they come from, and how many are read at a time."""


def standardise(pooler: Pooler, data: TaskData | PairData, texts: Texts, tokens: TokenSource, seed: int) -> None:
    """Fit a `LayeredPooler` on tokens of training rows; other poolers have nothing to fit.

    Args:
        pooler: of the run.
        data: its rows.
        texts: its distinct texts.
        tokens: their states.
        seed: of the sample.
    """
    if isinstance(pooler, LayeredPooler):
        pooler.fit(sample_tokens(data, texts, tokens, seed))


@torch.no_grad()
def sample_tokens(data: TaskData | PairData, texts: Texts, tokens: TokenSource, seed: int) -> torch.Tensor:
    """States of all tokens of some texts of the training rows: about `SAMPLED_TOKENS`, (n, m d)."""
    sides = data.train.sides if isinstance(data, PairData) else _index(texts).sides(data.train)
    places = np.unique(np.concatenate([side.ravel() for side in sides]))
    places = np.random.default_rng(seed).permutation(places[places >= 0])[:SAMPLED_TEXTS]
    parts: list[torch.Tensor] = []
    for start in range(0, len(places), AT_ONCE):
        parts.append(tokens.gather(places[start : start + AT_ONCE]).tokens)
        if sum(map(len, parts)) >= SAMPLED_TOKENS:
            break
    return torch.cat(parts)


def _index(texts: Texts) -> TextIndex:
    assert isinstance(texts, TextIndex)
    return texts


def layer_facts(config: RunConfig, pooler: Pooler) -> Result:
    """The share that each layer has in a learnt weighted sum, for the result; nothing for other poolers."""
    shares = pooler.layer_weights if isinstance(pooler, LayeredPooler) else []
    layers = config.backbone.hidden_layer.split(",")
    return {"layer_weights": {layer: round(share, 6) for layer, share in zip(layers, shares, strict=True)}} if shares else {}
