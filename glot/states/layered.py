"""LayeredTokens: the states of several hidden layers side by side, from a store for each."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from glot.states.store import StoredTokens
from glot.types import TokenBatch


class LayeredTokens:
    """A TokenSource over the stores of m layers of the same texts: nothing is copied, and only what a batch needs is read.

    Args:
        layers: one store per layer, of one width.

    Examples:
        >>> LayeredTokens([store_of_layer_0, store_of_layer_6]).gather(np.array([3, 0]))  # tokens (N, 2 d)
    """

    def __init__(self, layers: list[StoredTokens]) -> None:
        self.layers = layers
        self.hidden_size = sum(layer.hidden_size for layer in layers)

    def __len__(self) -> int:
        return len(self.layers[0])

    @property
    def facts(self) -> dict[str, Any]:
        """Facts measured on the backbone; the width is that of all layers together."""
        return self.layers[0].facts | {"hidden_size": self.hidden_size}

    @property
    def store(self) -> dict[str, Any]:
        """As of one store, with the bytes of all; `path` is that of the first layer, `paths` are all."""
        stores = [layer.store for layer in self.layers]
        return stores[0] | {"bytes": sum(one["bytes"] for one in stores), "paths": [one["path"] for one in stores]}

    @property
    def trained(self) -> list[nn.Parameter]:
        """Empty: with stored states no backbone is trained."""
        return []

    def save(self, folder: Path) -> None:
        """Write nothing, because no backbone was trained."""

    def check(self) -> None:
        """See `StoredTokens.check`.

        Raises:
            StoreError: a store is damaged.
        """
        for layer in self.layers:
            layer.check()

    def gather(self, rows: np.ndarray) -> TokenBatch:
        """The states of `rows (B,)` in that order: float32 (N, m d) on the CPU."""
        batch = self.read(rows)
        return batch.with_tokens(batch.tokens.float())

    def read(self, rows: np.ndarray) -> TokenBatch:
        """`gather` in the stores' own precision."""
        batch = self.layers[0].read(rows)
        tokens = torch.empty(len(batch.tokens), self.hidden_size, dtype=batch.tokens.dtype)
        for place, layer in enumerate(self.layers):
            states = batch.tokens if place == 0 else layer.read(rows).tokens
            tokens[:, place * layer.hidden_size : (place + 1) * layer.hidden_size] = states
        return batch.with_tokens(tokens)
