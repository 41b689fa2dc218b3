"""Losses: (output, labels) -> scalar."""

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(output: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, C) against classes (B,) int64."""
    return F.cross_entropy(output, labels)


def cosine_mse(output: Tensor, labels: Tensor) -> Tensor:
    """Cosines (B,) against targets (B,) float."""
    return F.mse_loss(output, labels)


def symmetric_info_nce(similarities: Tensor, labels: Tensor | None = None, temperature: float = 0.07) -> Tensor:
    """Symmetric InfoNCE of similarities (B, B + M), row i's match in column i: the mean of both directions' cross-entropies.

    Labels are ignored. The M hard negatives are no query's match, so only the direction query -> text sees them.
    """
    count = similarities.shape[0]
    targets = torch.arange(count, device=similarities.device)
    logits = similarities / temperature
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits[:, :count].T, targets)) / 2
