"""Heads: sentence vectors -> logits, cosines or dot products, which the loss takes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SingleHead(nn.Module):
    """One vector z (B, D) -> logits (B, C).

    Examples:
        >>> SingleHead(384, 2)(torch.zeros(8, 384))
    """

    def __init__(self, in_dim: int, num_labels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, num_labels)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C)."""
        return self.linear(z)


class PairHead(nn.Module):
    """Two vectors (B, D), concatenated as [z_a, z_b] -> logits (B, C).

    Examples:
        >>> PairHead(384, 2)(torch.zeros(8, 384), torch.zeros(8, 384))
    """

    def __init__(self, in_dim: int, num_labels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * in_dim, num_labels)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, C)."""
        return self.linear(torch.cat([first, second], 1))


class InBatchHead(nn.Module):
    """Queries, their positives and any hard negatives -> dot products of every query with every text.

    It has no parameters. The release compares vectors as they are; `contrastive_normalize` scales them to length one first.

    Examples:
        >>> InBatchHead(384, contrastive_normalize=True)(torch.ones(8, 384), torch.ones(8, 384))
    """

    def __init__(self, in_dim: int, num_labels: int = 0, contrastive_normalize: bool = False) -> None:
        super().__init__()
        self.normalize = contrastive_normalize

    def forward(self, query: Tensor, positive: Tensor, negative: Tensor | None = None) -> Tensor:
        """Query (B, D), positive (B, D), negative (M, D) -> (B, B + M); row i's match is column i."""
        texts = positive if negative is None else torch.cat([positive, negative])
        if self.normalize:
            query, texts = F.normalize(query, dim=1), F.normalize(texts, dim=1)
        return query @ texts.T


class CosineHead(nn.Module):
    """Two vectors (B, D) through one shared square projection -> their cosine (B,).

    Examples:
        >>> CosineHead(384)(torch.ones(8, 384), torch.ones(8, 384))
    """

    def __init__(self, in_dim: int, num_labels: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, in_dim)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,), in [-1, 1]."""
        return F.cosine_similarity(self.linear(first), self.linear(second), dim=1)
