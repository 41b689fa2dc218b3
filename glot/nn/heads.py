"""Heads: sentence vectors -> logits, cosines or dot products, which the loss takes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONCAT, FULL, COSINE, SYMMETRIC = "concat", "full", "cosine", "symmetric"


def join_pair(first: Tensor, second: Tensor, features: str) -> Tensor:
    """Features of two vectors (B, D).

    What is linear in [u; v] is a sum of two parts that each see one text, so it cannot compare them; `full` can (InferSent's features,
    Conneau et al. 2017, section 3.1, and the cosine).

    Args:
        first: u.
        second: v.
        features: `concat` [u; v] (B, 2 D), `full` [u; v; |u - v|; uv; cosine] (B, 4 D + 1), `symmetric` [u + v; |u - v|; uv; cosine]
            (B, 3 D + 1), which does not depend on the order, or `cosine` (B, 1).
    """
    if features == CONCAT:
        return torch.cat([first, second], 1)
    cosine = F.cosine_similarity(first, second, dim=1).unsqueeze(1)
    if features == COSINE:
        return cosine
    vectors = [first + second] if features == SYMMETRIC else [first, second]
    return torch.cat([*vectors, (first - second).abs(), first * second, cosine], 1)


def joined_width(in_dim: int, sides: int, features: str) -> int:
    """Number of features of one vector, or of two by `join_pair`."""
    if sides == 1:
        return in_dim
    return {CONCAT: 2 * in_dim, FULL: 4 * in_dim + 1, SYMMETRIC: 3 * in_dim + 1, COSINE: 1}[features]


class SingleHead(nn.Module):
    """One vector z (B, D) -> logits (B, C).

    Examples:
        >>> SingleHead(384, 2)(torch.zeros(8, 384))
    """

    def __init__(self, in_dim: int, num_labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_dim, num_labels)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C)."""
        return self.linear(self.dropout(z))


class PairHead(nn.Module):
    """Two vectors (B, D), as features of `join_pair` -> logits (B, C).

    Examples:
        >>> PairHead(384, 2)(torch.zeros(8, 384), torch.zeros(8, 384))
    """

    def __init__(self, in_dim: int, num_labels: int, pair_features: str = CONCAT, dropout: float = 0.0) -> None:
        super().__init__()
        self.features = pair_features
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(joined_width(in_dim, 2, pair_features), num_labels)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, C)."""
        return self.linear(self.dropout(join_pair(first, second, self.features)))


class FeatureHead(SingleHead):
    """Features of a pair (B, F) -> logits (B, C), or a score (B,) where `num_labels` is 1.

    Examples:
        >>> FeatureHead(19, 1)(torch.zeros(8, 19))
    """

    def forward(self, z: Tensor) -> Tensor:
        """(B, C), or (B,)."""
        found = super().forward(z)
        return found.squeeze(1) if self.linear.out_features == 1 else found


class ScoreHead(PairHead):
    """Two vectors (B, D), as features of `join_pair` -> scores (B,).

    Examples:
        >>> ScoreHead(384)(torch.zeros(8, 384), torch.zeros(8, 384))
    """

    def __init__(self, in_dim: int, pair_features: str = FULL, dropout: float = 0.0) -> None:
        super().__init__(in_dim, 1, pair_features, dropout)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,), in the scale of the labels."""
        return super().forward(first, second).squeeze(1)


def similarity_head(in_dim: int, num_labels: int = 1, pair_features: str = CONCAT, dropout: float = 0.0) -> nn.Module:
    """The head of a task of scores: the release's cosine, or a linear layer on other features of the pair."""
    return CosineHead(in_dim, dropout=dropout) if pair_features == CONCAT else ScoreHead(in_dim, pair_features, dropout)


class FittedHead(nn.Module):
    """A linear model that was fitted on pooled vectors by a solver (`glot.training.linear_heads`), with the scaling of its features.

    Examples:
        >>> FittedHead(384, sides=2, num_labels=2, pair_features="full")(torch.zeros(8, 384), torch.zeros(8, 384))
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, in_dim: int, sides: int, num_labels: int, pair_features: str = CONCAT) -> None:
        super().__init__()
        width = joined_width(in_dim, sides, pair_features)
        self.pair_features, self.is_score = pair_features, num_labels == 1
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.linear = nn.Linear(width, num_labels)

    def features(self, *sides: Tensor) -> Tensor:
        """What the solver sees of vectors (B, D) of one or two sides: (B, F)."""
        return sides[0] if len(sides) == 1 else join_pair(sides[0], sides[1], self.pair_features)

    def forward(self, *sides: Tensor) -> Tensor:
        """Scores of the classes (B, C), or one score (B,)."""
        found = self.linear((self.features(*sides) - self.mean) / self.scale)
        return found.squeeze(1) if self.is_score else found


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

    def __init__(self, in_dim: int, num_labels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_dim, in_dim)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B,), in [-1, 1]."""
        return F.cosine_similarity(self.linear(self.dropout(first)), self.linear(self.dropout(second)), dim=1)
