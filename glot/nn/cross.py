"""The cross graph: which tokens of a sentence see which tokens of the other sentence of its pair.

Every rule is symmetric: where token i sees token j, token j sees token i. Pairs are built in groups of similar length, padded together.
The graph of a pair depends on that pair alone, except for `shuffled`, a control, which depends on the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from glot.nn.edges import Edges
from glot.nn.graph import SPARSE_DENSITY, SPARSE_NEIGHBOURS, Block, GraphRule, group_by_length, least_counted, parts_of
from glot.nn.padding import Padding
from glot.types import TokenBatch

SHUFFLED = "shuffled"


@dataclass(frozen=True)
class CrossRule:
    """How edges across a pair are chosen.

    Attributes:
        kind: a name of `CROSS_RULES`.
        tau: cosine above which (strictly) two tokens are joined; random and shuffled join as many.
        knn_k: nearest tokens of the other sentence per token (knn).
        seed: seed of the random graph.
        inside: how the tokens of one sentence see each other; None = not at all.

    Examples:
        >>> CrossRule("knn", knn_k=1, inside=GraphRule("threshold", tau=0.6))
    """

    kind: str = "threshold"
    tau: float = 0.3
    knn_k: int = 8
    seed: int = 0
    inside: GraphRule | None = None


def rotate(batch: TokenBatch) -> TokenBatch:
    """The sentences of a batch one place forward: sentence i is the former i + 1, the last is the former first."""
    cut = int(batch.ptr[1])
    return TokenBatch.from_lengths(torch.cat([batch.tokens[cut:], batch.tokens[:cut]]), batch.lengths.roll(-1))


class PairView:
    """What a rule reads of one group of pairs.

    Args:
        sides: the two sentences of each pair.
        place: of the group in both sides' padding.
        rule: how edges are chosen.

    Examples:
        >>> PairView(CrossGraph(first, second, CrossRule()).sides, 0, CrossRule()).cosines(0, 1)
    """

    def __init__(self, sides: tuple[Padding, Padding], place: int, rule: CrossRule) -> None:
        self.rule = rule
        self.masks = tuple(side.mask[place] for side in sides)
        self.lengths = tuple(side.lengths[place] for side in sides)
        self._parts = [(side.batch.tokens, side.index[place]) for side in sides]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(b, n, m): pairs, tokens of the longest first sentence, and of the longest second one."""
        return len(self.masks[0]), self.masks[0].shape[1], self.masks[1].shape[1]

    @cached_property
    def units(self) -> list[Tensor]:
        """(b, n, d) and (b, m, d) float32 rows of length one; a zero row stays zero."""
        rows = [tokens.index_select(0, index.flatten()).float() for tokens, index in self._parts]
        return [F.normalize(row, dim=-1).unflatten(0, index.shape) for row, (_, index) in zip(rows, self._parts, strict=True)]

    @cached_property
    def real(self) -> Tensor:
        """(b, n, m) bool, false where either token is padding."""
        return self.masks[0].unsqueeze(2) & self.masks[1].unsqueeze(1)

    def cosines(self, start: int, stop: int) -> Tensor:
        """Cosines of tokens `start` to `stop` of the first sentences with all tokens of the second: (b, r, m)."""
        return self.units[0][:, start:stop] @ self.units[1].transpose(1, 2)

    @cached_property
    def near(self) -> Tensor:
        """(b, n, m) bool: cosine above tau, by row ranges: only one range of cosines is held at a time."""
        ranges = [self.cosines(start, stop) > self.rule.tau for start, stop in parts_of(self._parts[0][0].device, *self.shape[1:])]
        return torch.cat(ranges, 1) & self.real

    def ranked(self) -> Tensor:
        """(b, n, m) cosines, -inf where either token is padding."""
        return self.cosines(0, self.shape[1]).masked_fill(~self.real, -torch.inf)


def _threshold(view: PairView) -> Tensor:
    return view.near


def _none(view: PairView) -> Tensor:
    return torch.zeros_like(view.real)


def _complete(view: PairView) -> Tensor:
    return view.real


def _knn(view: PairView) -> Tensor:
    """Two tokens are joined where either is among the other's k nearest."""
    chosen = torch.zeros_like(view.real)
    cosines = view.ranked()
    for dim in (1, 2):
        chosen.scatter_(dim, cosines.topk(min(view.rule.knn_k, cosines.shape[dim]), dim).indices, True)
    return chosen


def _random(view: PairView) -> Tensor:
    """As many pairs as the threshold graph joins. Seed, lengths and number of pairs determine the draw; the sentences' order does not."""
    chosen = torch.zeros_like(view.real)
    counts = view.near.sum((1, 2)).tolist()
    sums = torch.stack([unit.sum((1, 2)) for unit in (unit * mask.unsqueeze(2) for unit, mask in zip(view.units, view.masks, strict=True))])
    turned = (sums[0] > sums[1]).tolist()  # of two sentences of equal length, the same one is counted first in either order
    for row, (n, m, count) in enumerate(zip(*(lengths.tolist() for lengths in view.lengths), counts, strict=True)):
        is_turned = n > m or (n == m and turned[row])
        short, long = sorted((n, m))
        seed = ((view.rule.seed * 1_000_003 + short) * 1_000_003 + long) * 1_000_003 + count
        order = torch.randperm(n * m, generator=torch.Generator().manual_seed(seed % 2**63))[:count].to(chosen.device)
        first, second = order // long, order % long
        chosen[row, *((second, first) if is_turned else (first, second))] = True
    return chosen


CROSS_RULES: dict[str, Callable[[PairView], Tensor]] = {
    "threshold": _threshold,
    "knn": _knn,
    "complete": _complete,
    "none": _none,
    "random": _random,
    SHUFFLED: _threshold,  # on rotated pairs: see `CrossGraph.joined`
}
"""Kind -> rule(view) -> (b, n, m) bool: whether token i of the first and token j of the second sentence are joined."""


class Receivers(NamedTuple):
    """One side of one group: who receives from whom.

    Attributes:
        side: 0 = tokens of the first sentences receive, 1 = those of the second.
        senders: the sides whose tokens send, their states one after the other.
        allowed: (b, r, s) bool.
    """

    side: int
    senders: tuple[int, ...]
    allowed: Tensor


@dataclass(frozen=True, eq=False)
class CrossGraph:
    """One rule applied to a batch of pairs. `second` is rotated under `shuffled`, so that pair i is of row i and row i + 1.

    Examples:
        >>> CrossGraph(first, second, CrossRule("threshold", tau=0.6)).joined
    """

    first: TokenBatch
    second: TokenBatch
    rule: CrossRule

    @property
    def is_rotated(self) -> bool:
        """Whether the pairs are of different rows."""
        return self.rule.kind == SHUFFLED

    @cached_property
    def pair(self) -> tuple[TokenBatch, TokenBatch]:
        """Both sentences of each pair."""
        return self.first, rotate(self.second) if self.is_rotated else self.second

    @cached_property
    def groups(self) -> list[Tensor]:
        """The pairs of each group: those of similar length."""
        first, second = self.pair
        return group_by_length(torch.maximum(first.lengths, second.lengths), first.tokens.device)

    @cached_property
    def sides(self) -> tuple[Padding, Padding]:
        """Both sentences of each pair, in groups."""
        first, second = self.pair
        return Padding(first, self.groups), Padding(second, self.groups)

    @cached_property
    @torch.no_grad()
    def joined(self) -> list[Tensor]:
        """(b, n, m) bool per group. Under `shuffled` each pair joins the share that the row's own pair joins: its highest cosines."""
        with torch.autocast(self.first.tokens.device.type, enabled=False):  # the graph must not depend on the caller's autocast
            if self.is_rotated:
                return self._as_dense_as_own()
            views = [PairView(self.sides, place, self.rule) for place in range(len(self.sides[0].index))]
            return [CROSS_RULES[self.rule.kind](view) & view.real for view in views]

    def _as_dense_as_own(self) -> list[Tensor]:
        found = []
        own = CrossGraph(self.first, self.second, CrossRule("threshold", self.rule.tau))
        cells = self.first.lengths * self.second.lengths
        share = torch.empty(len(self.first), dtype=torch.float64)
        for rows, joined in zip(own.groups, own.joined, strict=True):
            share[rows] = joined.sum((1, 2)).cpu().double() / cells[rows]
        for place, rows in enumerate(self.groups):
            view = PairView(self.sides, place, self.rule)
            cosines = view.ranked().flatten(1)
            counts = (share[rows] * view.lengths[0] * view.lengths[1]).round().long() * (len(self.first) > 1)
            chosen = torch.zeros_like(cosines, dtype=torch.bool)
            for row, count in enumerate(counts.tolist()):
                chosen[row, cosines[row].topk(count).indices] = True
            found.append(chosen.view(view.shape))
        return found

    @cached_property
    def receivers(self) -> list[tuple[Receivers, Receivers]]:
        """Per group: the first sentences' tokens as receivers, and the second's."""
        found = []
        for place, joined in enumerate(self.joined):
            parts = []
            for side, across in enumerate((joined, joined.transpose(1, 2))):
                inside = self._inside(side, place)
                senders = (1 - side,) if inside is None else (side, 1 - side)
                parts.append(Receivers(side, senders, across if inside is None else torch.cat([inside, across], 2)))
            found.append((parts[0], parts[1]))
        return found

    def _inside(self, side: int, place: int) -> Tensor | None:
        """(b, n, n) bool: which tokens of their own sentence the tokens of a side see, themselves included."""
        if self.rule.inside is None:
            return None
        padding = self.sides[side]
        block = Block(padding.batch.tokens, self.rule.inside, padding.index[place], padding.mask[place], padding.lengths[place])
        return torch.cat(
            [block.rows(start, stop) for start, stop in parts_of(padding.batch.tokens.device, padding.index[place].shape[1])], 1
        )

    @cached_property
    def few(self) -> Edges | None:
        """The edges where that is the faster form, as for `TokenGraph.few`, else None."""
        lengths = torch.cat([side.lengths for side in self.pair])
        if int(lengths.max()) < least_counted(self.first.tokens.device):
            return None
        count = sum(int(part.allowed.count_nonzero()) for parts in self.receivers for part in parts)
        cells = sum(part.allowed.numel() for parts in self.receivers for part in parts)
        return self.edges if count <= min(SPARSE_DENSITY * cells, SPARSE_NEIGHBOURS * int(lengths.sum())) else None

    @cached_property
    def edges(self) -> Edges:
        """All edges; the tokens of the second sentences are counted behind those of the first."""
        starts = (0, len(self.pair[0].tokens))
        pairs = []
        for place, parts in enumerate(self.receivers):
            index = [side.index[place] + start for side, start in zip(self.sides, starts, strict=True)]
            real = [side.mask[place] for side in self.sides]
            for part in parts:
                senders, are_real = (torch.cat([rows[side] for side in part.senders], 1) for rows in (index, real))
                row, receiver, sender = part.allowed.nonzero(as_tuple=True)
                kept = real[part.side][row, receiver] & are_real[row, sender]
                pairs.append(torch.stack([senders[row, sender], index[part.side][row, receiver]])[:, kept])
        return Edges.from_pairs(torch.cat(pairs, 1), sum(len(side.tokens) for side in self.pair))
