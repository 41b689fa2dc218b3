"""LiveTokens: token states that are computed at each request, without a store."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glot.errors import StateError
from glot.states.backbone.adapters import LoraOptions, save_adapter, train_weights
from glot.states.backbone.model import Backbone
from glot.types import TokenBatch


class LiveTokens:
    """A TokenSource that runs the backbone at each `gather`.

    With `trainable=True`, where gradients are enabled, states carry gradient and dropout is on. Elsewhere neither holds.

    Args:
        backbone: loaded.
        ids: token ids of S texts.
        trainable: train the backbone too.
        skips: (S,) number of leading tokens of each text that are read but left out.
        where: index of a text -> its row in words, for messages.
        lora: train an adapter in place of the backbone's own weights.

    Attributes:
        trained: weights of the backbone or of its adapter that are trained.

    Examples:
        >>> LiveTokens(backbone, backbone.tokenise(["one text", "another"])).gather(np.array([0, 1]))
    """

    def __init__(
        self,
        backbone: Backbone,
        ids: Sequence[list[int]],
        trainable: bool = False,
        skips: Sequence[int] | None = None,
        where: Callable[[int], str] = "text {}".format,
        lora: LoraOptions | None = None,
    ) -> None:
        self.backbone = backbone
        self.hidden_size = backbone.hidden_size
        self._trainable = trainable
        self._ids, self._skips, self._where = ids, skips, where
        self._adapted = train_weights(backbone, lora) if trainable else None
        self.trained = [weight for weight in backbone.model.parameters() if weight.requires_grad] if trainable else []

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def facts(self) -> dict[str, Any]:
        """Facts measured on the backbone when it was loaded."""
        return self.backbone.facts

    @property
    def store(self) -> None:
        """None: nothing is stored."""

    def save(self, folder: Path) -> None:
        """Write the backbone, or its adapter, if it was trained."""
        if self._adapted is not None:
            save_adapter(self._adapted, folder)
        elif self._trainable:
            self.backbone.save(folder)

    def check(self) -> None:
        """Nothing is stored, so nothing can have changed."""

    def gather(self, rows: np.ndarray) -> TokenBatch:
        """The states of `rows (B,)`: float32 (N, d) on the backbone's device.

        Raises:
            StateError: the backbone fails on a text, or its states are not finite. The message names the row.
        """
        training = self._trainable and torch.is_grad_enabled()
        self.backbone.model.train(training)
        skips = None if self._skips is None else [self._skips[row] for row in rows]
        try:
            with nullcontext() if training else torch.no_grad():
                batch = self.backbone.encode([self._ids[row] for row in rows], skips)
        except StateError as error:
            raise StateError(error.problem, where="" if error.place is None else self._where(int(rows[error.place]))) from error
        return batch.with_tokens(batch.tokens.float())

    def read(self, rows: np.ndarray) -> TokenBatch:
        """`gather`: the states are where they are needed."""
        return self.gather(rows)
