"""Token states that are computed whenever they are asked for."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from glot.errors import StateError
from glot.states.backbone.model import Backbone
from glot.types import TokenBatch


class LiveTokens:
    """A TokenSource that runs the backbone whenever rows are asked for.

    With `trainable=True` states carry gradient and dropout is on wherever gradients are enabled (training), and neither is so
    elsewhere (evaluation).

    Args:
        backbone: loaded.
        ids: token ids of S texts.
        trainable: train the backbone too.
        skips: (S,) leading tokens of each text that are read but left out.
        where: place of a text -> its row in words, for messages.
    """

    def __init__(
        self,
        backbone: Backbone,
        ids: Sequence[list[int]],
        trainable: bool = False,
        skips: Sequence[int] | None = None,
        where: Callable[[int], str] = "text {}".format,
    ) -> None:
        self.backbone = backbone
        self.hidden_size = backbone.hidden_size
        self._trainable = trainable
        self._ids, self._skips, self._where = ids, skips, where
        backbone.model.requires_grad_(trainable)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def facts(self) -> dict[str, Any]:
        """What was found out about the backbone when it was loaded."""
        return self.backbone.facts

    @property
    def store(self) -> None:
        """Nothing is stored."""

    @property
    def trained(self) -> list[nn.Parameter]:
        """All weights of the backbone, where it is trained too."""
        return list(self.backbone.model.parameters()) if self._trainable else []

    def save(self, folder: Path) -> None:
        """Write the backbone, where it was trained."""
        if self._trainable:
            self.backbone.save(folder)

    def gather(self, rows: np.ndarray) -> TokenBatch:
        """The states of `rows (B,)`: float32 (N, d) on the backbone's device.

        Raises:
            StateError: the backbone fails on a text or gives numbers that are not finite; the row is named.
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
