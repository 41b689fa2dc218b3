"""Predictions of a model over a split, and their scores."""

import numpy as np
import torch
from torch import nn

from glot.metrics import METRICS
from glot.types import Batches


@torch.no_grad()
def predict(model: nn.Module, batches: Batches) -> np.ndarray:
    """The model's outputs in row order, in evaluation mode: (S, C) or (S,) float32."""
    model.eval()
    return torch.cat([model(batch).float().cpu() for batch in batches]).numpy()


def score(outputs: np.ndarray, labels: np.ndarray, metrics: tuple[str, ...], suffix: str = "") -> dict[str, float]:
    """Named metrics of outputs against labels `(S,)`."""
    return {metric + suffix: METRICS[metric](labels, outputs) for metric in metrics}
