"""What stands between sentence vectors and the loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SingleHead(nn.Module):
    """One vector z (B, D) -> logits (B, C)."""

    def __init__(self, in_dim: int, num_labels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, num_labels)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C)."""
        return self.linear(z)


class PairHead(nn.Module):
    """Two vectors, joined as [z_a, z_b] -> logits (B, C)."""

    def __init__(self, in_dim: int, num_labels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * in_dim, num_labels)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, C)."""
        return self.linear(torch.cat([first, second], 1))


class InBatchHead(nn.Module):
    """Queries and their positives, and whatever further negatives there are -> dot products of every query with every text.

    Without parameters. The release compares vectors as they are; `contrastive_normalize` gives them length one first.
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
    """Two vectors through one square projection -> their cosine (B,)."""

    def __init__(self, in_dim: int, num_labels: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, in_dim)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,), in [-1, 1]."""
        return F.cosine_similarity(self.linear(first), self.linear(second), dim=1)
