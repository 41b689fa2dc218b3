"""Predictions of a model over a split, and their scores."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from glot.nn.model import SentenceModel
from glot.training.metrics import METRICS, RANK_METRICS
from glot.types import Batches

RANKED_AT_ONCE = 256


@torch.no_grad()
def predict(model: nn.Module, batches: Batches, rows: int = 0) -> np.ndarray:
    """The model's outputs in row order, in evaluation mode: (S, C) or (S,) float32; (R, S, ...) of a stack, with `rows` = 1."""
    model.eval()
    return torch.cat([model(batch).float().cpu() for batch in batches], rows).numpy()


def score(outputs: np.ndarray, labels: np.ndarray, metrics: tuple[str, ...], suffix: str = "") -> dict[str, float]:
    """Named metrics of outputs against labels `(S,)`."""
    return {metric + suffix: METRICS[metric](labels, outputs) for metric in metrics}


@torch.no_grad()
def rank_positives(
    model: SentenceModel, batches: Batches, positives: np.ndarray, loss: Callable[[Tensor, None], Tensor]
) -> tuple[dict[str, float], np.ndarray]:
    """How well queries find their positives among those of all rows, by cosine; and the mean loss of the batches.

    Args:
        model: its pooler embeds, its head (through `loss`) compares inside each batch.
        batches: (query, positive, ...) in row order.
        positives: (S,), equal numbers where two rows have the same positive: such a text counts once.
        loss: (head's output, None) -> scalar.

    Returns:
        metrics mrr_at_10, recall_at_1, loss; and the rank of each row's positive, 1 = first: (S,).
    """
    model.eval()
    queries, texts, losses, sizes = [], [], [], []
    for batch in batches:
        vectors = [model.pooler(side) for side in batch.sides]
        losses.append(float(loss(model.head(*vectors), None)))
        sizes.append(len(batch))
        queries.append(F.normalize(vectors[0].float(), dim=1).cpu())
        texts.append(F.normalize(vectors[1].float(), dim=1).cpu())
    _, first, own = np.unique(positives, return_index=True, return_inverse=True)
    candidates = torch.cat(texts)[torch.from_numpy(first)]
    ranks = []
    for rows, column in zip(torch.cat(queries).split(RANKED_AT_ONCE), torch.from_numpy(own).split(RANKED_AT_ONCE), strict=True):
        cosines = rows @ candidates.T
        worse = cosines < cosines.gather(1, column.unsqueeze(1))  # ties, and vectors that are no numbers, count against
        ranks.append(len(candidates) - worse.sum(1))
    found = torch.cat(ranks).numpy()
    metrics = {name: float(shares(found).mean()) for name, shares in RANK_METRICS.items()}
    return metrics | {"loss": float(np.average(losses, weights=sizes))}, found
