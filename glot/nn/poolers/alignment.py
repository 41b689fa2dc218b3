"""Token alignment across a pair: how well each token of one sentence is matched by a token of the other. No weights."""

import torch
from torch import Tensor
from torch.nn import functional as F

from glot.nn.cross import rotate
from glot.nn.graph import group_by_length, parts_of
from glot.nn.padding import Padding
from glot.nn.pooler import Pooler
from glot.nn.segment import segment_mean
from glot.types import TokenBatch

QUANTILES = (0.1, 0.25, 0.5, 0.75)
SHARES = (0.5, 0.7, 0.9)
"""Cosines above which the share of a sentence's tokens is counted."""
ONE_WAY = ("mean", "min", *(f"q{100 * level:.0f}" for level in QUANTILES), *(f"above_{level:g}" for level in SHARES))
"""Numbers over the best cosines of one sentence's tokens, in order."""
ALIGNMENT_FEATURES = (*(f"first_{name}" for name in ONE_WAY), *(f"second_{name}" for name in ONE_WAY), "cosine_of_means")
"""The features in order: of the first sentence's tokens in the second, of the second's in the first, and the cosine of the mean vectors.

With `symmetric`, the first half holds the mean of both directions and the second half their distance.
"""


class AlignmentPooler(Pooler):
    """Two sentences (N1, d), (N2, d) -> features of the pair (B, 19), listed in `ALIGNMENT_FEATURES`.

    A token's match is its best cosine among the tokens of the other sentence (BERTScore's greedy matching, Zhang et al. 2020, section 3).

    Args:
        in_dim: d.
        shuffled: the control: match each sentence against the partner of another row of the batch. The cosine of the means stays the row's
            own. A row alone in its batch is matched against nothing: its best cosines are 0.
        symmetric: exchanging the two sentences changes nothing.

    Examples:
        >>> AlignmentPooler(384)(first, second)
    """

    sides = 2

    def __init__(self, in_dim: int, shuffled: bool = False, symmetric: bool = False) -> None:
        super().__init__(in_dim, len(ALIGNMENT_FEATURES))
        self.shuffled, self.symmetric = shuffled, symmetric

    def forward(self, first: TokenBatch, second: TokenBatch) -> Tensor:
        """(B, 19)."""
        there, back = self._numbers(first, second)
        if self.symmetric:
            there, back = (there + back) / 2, (there - back).abs()
        cosine = F.cosine_similarity(segment_mean(first.tokens, first), segment_mean(second.tokens, second), dim=1)
        return torch.cat([there, back, cosine.unsqueeze(1)], 1)

    def _numbers(self, first: TokenBatch, second: TokenBatch) -> tuple[Tensor, Tensor]:
        """(B, 9) of each direction, in row order."""
        partner = rotate(second) if self.shuffled else second
        best = best_cosines(first, partner)
        if self.shuffled and len(first) == 1:
            best = torch.zeros_like(best[0]), torch.zeros_like(best[1])
        there, back = summarise(first.with_tokens(best[0].unsqueeze(1))), summarise(partner.with_tokens(best[1].unsqueeze(1)))
        return there, back.roll(1, 0) if self.shuffled else back


def best_cosines(first: TokenBatch, second: TokenBatch) -> tuple[Tensor, Tensor]:
    """The best cosine of each token among the tokens of the other sentence of its pair: (N1,) and (N2,)."""
    groups = group_by_length(torch.maximum(first.lengths, second.lengths), first.tokens.device)
    sides = Padding(first, groups), Padding(second, groups)
    units = [side.pad(F.normalize(side.batch.tokens.float(), dim=1)) for side in sides]
    best: tuple[list[Tensor], list[Tensor]] = ([], [])
    for one, other, one_real, other_real in zip(*units, sides[0].mask, sides[1].mask, strict=True):
        rows, columns = [], []
        for start, stop in parts_of(one.device, one.shape[1], other.shape[1]):
            cosines = one[:, start:stop] @ other.transpose(1, 2)
            rows.append(cosines.masked_fill(~other_real.unsqueeze(1), -1.0).amax(2))
            columns.append(cosines.masked_fill(~one_real[:, start:stop].unsqueeze(2), -1.0).amax(1))
        best[0].append(torch.cat(rows, 1).unsqueeze(2))
        best[1].append(torch.stack(columns).amax(0).unsqueeze(2))
    return sides[0].unpad(best[0]).squeeze(1), sides[1].unpad(best[1]).squeeze(1)


def summarise(values: TokenBatch) -> Tensor:
    """One number per token (N, 1) -> the numbers of `ONE_WAY` per sentence: (B, 9). Quantiles are interpolated linearly, as numpy does."""
    lengths = values.counts
    padding = Padding(values, [torch.arange(len(values))])
    padded = padding.pad(values.tokens)[0].squeeze(2)
    ordered = padded.masked_fill(~padding.mask[0], torch.inf).sort(1).values
    columns = [segment_mean(values.tokens, values).squeeze(1), ordered[:, 0]]
    for level in QUANTILES:
        place = level * (lengths - 1).to(values.tokens.dtype)
        low = place.floor().long().unsqueeze(1)
        high = torch.minimum(low + 1, (lengths - 1).unsqueeze(1))
        below, above = ordered.gather(1, low).squeeze(1), ordered.gather(1, high).squeeze(1)
        columns.append(below + (above - below) * (place - low.squeeze(1)))
    columns += [segment_mean((values.tokens > level).to(values.tokens.dtype), values).squeeze(1) for level in SHARES]
    return torch.stack(columns, 1)
