"""The token graph: which tokens of one sentence see each other.

Every rule is symmetric (but for the last bit of a cosine), keeps the diagonal and depends on the sentence alone, so a sentence's vector
does not depend on its batch-mates. A graph is built block by block (sentences of similar length, padded together), or some rows of a long
sentence at a time, and only when a layer asks for it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from glot.nn.edges import Edges
from glot.nn.places import CollectRows, SpreadRows, cut, join
from glot.types import TokenBatch

DENSE_TOKENS = 2048
"""Longest sentence whose adjacency is made as a whole: n x n float32 is 16 MiB there."""
SPARSE_TOKENS = 128
"""A batch whose longest sentence has fewer tokens is not worth counting edges for."""
SPARSE_DENSITY = 0.04
"""Share of pairs up to which edges are faster than blocks: they are level at 0.04 (128 tokens) to 0.08 (2,048; benchmarks/README.md)."""
SPARSE_NEIGHBOURS = 128
"""Edges a token, on average, up to which edges are taken: they are kept, so memory stays linear in the length of a sentence."""
BLOCK_ELEMENTS = 1 << 20
"""Most b * n * n elements in one block: 4 MiB of float32."""
BLOCK_OVERHEAD = 1 << 14
"""What opening one more block costs, in elements: padding up to this is cheaper than another round of small kernels."""


@dataclass(frozen=True)
class GraphRule:
    """How edges are chosen.

    Attributes:
        kind: a name of `RULES`.
        tau: cosine above which (strictly) two tokens are joined, in [-1, 1); for threshold and random.
        knn_k: nearest neighbours of each token (knn).
        window_size: distance in the text up to which tokens are joined (window).
        seed: of the random graph.
    """

    kind: str = "threshold"
    tau: float = 0.3
    knn_k: int = 8
    window_size: int = 2
    seed: int = 0


class View:
    """The sentences of one block as a rule sees them; what several parts of the adjacency share is computed once.

    Args:
        tokens: (N, d), the packed batch.
        index: (b, n) int64, position of each token in it; padding repeats the sentence's first token.
        mask: (b, n) bool, true for real tokens.
        lengths: (b,) on the CPU.
        rule: how edges are chosen.
    """

    def __init__(self, tokens: Tensor, index: Tensor, mask: Tensor, lengths: Tensor, rule: GraphRule) -> None:
        self.mask, self.lengths, self.rule = mask, lengths, rule
        self._tokens, self._index = tokens, index

    @property
    def size(self) -> int:
        """Tokens of the longest sentence, n."""
        return self._index.shape[1]

    def filled(self, rows: int, value: bool) -> Tensor:
        """(b, rows, n) bool, all of one value."""
        return torch.full((len(self._index), rows, self.size), value, device=self._tokens.device)

    @cached_property
    def unit(self) -> Tensor:
        """(b, n, d) float32 rows of length one, as the release makes them before its matrix product; a zero row stays zero."""
        rows = self._tokens.index_select(0, self._index.flatten()).float()
        F.normalize(rows, dim=-1, out=rows)  # the copy that was just made
        return rows.unflatten(0, self._index.shape)

    def cosines(self, start: int, stop: int) -> Tensor:
        """Of tokens `start` to `stop` with all tokens of their sentence: (b, r, n)."""
        return self.unit[:, start:stop] @ self.unit.transpose(1, 2)

    @cached_property
    def nearest(self) -> Tensor:
        """(b, n, k) int64: the nearest neighbours of every token, itself left out."""
        found = []
        for start, stop in parts_of(self.size):
            similar = self.cosines(start, stop).masked_fill(~self.mask.unsqueeze(1), -torch.inf)
            similar.diagonal(offset=start, dim1=1, dim2=2).fill_(-torch.inf)
            found.append(similar.topk(min(self.rule.knn_k, self.size), dim=-1).indices)
        return torch.cat(found, 1)

    @cached_property
    def drawn(self) -> Tensor:
        """(b, n, n) bool: as many random pairs as the threshold graph joins, drawn by (seed, length, number of pairs)."""
        real = self.mask.unsqueeze(1) & self.mask.unsqueeze(2)
        real &= self.cosines(0, self.size) > self.rule.tau
        pairs = real.triu(1).sum((1, 2)).tolist()
        chosen = torch.zeros_like(real)
        for row, (length, count) in enumerate(zip(self.lengths.tolist(), pairs, strict=True)):
            upper = torch.triu_indices(length, length, 1)
            generator = torch.Generator().manual_seed(((self.rule.seed * 1_000_003 + length) * 1_000_003 + count) % 2**63)
            first, second = upper[:, torch.randperm(upper.shape[1], generator=generator)[:count]].to(chosen.device)
            chosen[row, first, second] = True
            chosen[row, second, first] = True
        return chosen


def _threshold(view: View, start: int, stop: int) -> Tensor:
    return view.cosines(start, stop) > view.rule.tau


def _none(view: View, start: int, stop: int) -> Tensor:
    return view.filled(stop - start, False)


def _complete(view: View, start: int, stop: int) -> Tensor:
    return view.filled(stop - start, True)


def _window(view: View, start: int, stop: int) -> Tensor:
    steps = torch.arange(view.size, device=view.mask.device)
    near = (steps.unsqueeze(0) - steps[start:stop].unsqueeze(1)).abs() <= view.rule.window_size
    return near.expand(len(view.mask), -1, -1).clone()


def _knn(view: View, start: int, stop: int) -> Tensor:
    """A pair is joined where one of the two is among the other's nearest."""
    chosen = view.filled(stop - start, False).scatter_(2, view.nearest[:, start:stop], True)
    sentence, other, slot = ((view.nearest >= start) & (view.nearest < stop)).nonzero(as_tuple=True)
    chosen[sentence, view.nearest[sentence, other, slot] - start, other] = True
    return chosen


def _random(view: View, start: int, stop: int) -> Tensor:
    return view.drawn[:, start:stop].clone()


Rule = Callable[[View, int, int], Tensor]
RULES: dict[str, Rule] = {
    "threshold": _threshold,
    "none": _none,
    "complete": _complete,
    "random": _random,
    "knn": _knn,
    "window": _window,
}
"""Graph kind -> rule(view, start, stop) -> (b, r, n) bool: which tokens do tokens `start` to `stop` see.

What a rule says of the diagonal and of padding does not count: `Block` adds the one and cuts the other.
"""


@dataclass(frozen=True, eq=False)
class Block:
    """b sentences of similar length, padded to the longest, and their adjacency under one rule.

    Attributes:
        tokens: (N, d), the packed batch.
        rule: how edges are chosen.
        index, mask, lengths: see `View`.
    """

    tokens: Tensor
    rule: GraphRule
    index: Tensor
    mask: Tensor
    lengths: Tensor

    @cached_property
    def dense(self) -> Tensor:
        """(b, n, n) bool: may token i (row) see token j (column). Padding sees only itself, so no row is empty."""
        return self._allowed(self.view(), 0, self.index.shape[1])

    @cached_property
    def barrier(self) -> Tensor:
        """(b, n, n) float32: what is added to a logit, 0 where `dense` allows the pair, else -inf."""
        return barrier_of(self.dense)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of `dense`, (b, r, n): nothing of size n x n is made, but by the random rule."""
        return self._allowed(self._kept_view, start, stop)

    def view(self) -> View:
        """What a rule is applied to."""
        return View(self.tokens, self.index, self.mask, self.lengths, self.rule)

    @cached_property
    def _kept_view(self) -> View:
        """For a long sentence, which is asked for part by part; `dense` drops its own."""
        return self.view()

    @torch.no_grad()
    def _allowed(self, view: View, start: int, stop: int) -> Tensor:
        with torch.autocast(self.tokens.device.type, enabled=False):  # the graph does not depend on the precision of the rest
            allowed = RULES[self.rule.kind](view, start, stop)
        allowed &= self.mask[:, start:stop].unsqueeze(2) & self.mask.unsqueeze(1)
        allowed.diagonal(offset=start, dim1=1, dim2=2).fill_(True)
        return allowed


@dataclass(frozen=True, eq=False)
class TokenGraph:
    """One rule applied to one batch: in `blocks`, or as `edges` of the whole batch.

    Example:
        TokenGraph(batch, GraphRule("threshold", tau=0.6)).edges
    """

    batch: TokenBatch
    rule: GraphRule

    @cached_property
    def blocks(self) -> list[Block]:
        """All sentences of the batch, each in one block."""
        return [self._block(rows) for rows in group_by_length(self.batch.lengths)]

    def _block(self, rows: Tensor) -> Block:
        """Padded positions of sentences `rows (b,)`."""
        ptr, device = self.batch.ptr, self.batch.tokens.device
        lengths = ptr[rows + 1] - ptr[rows]
        steps = torch.arange(int(lengths.max()))
        mask = steps < lengths.unsqueeze(1)
        index = ptr[rows].unsqueeze(1) + torch.where(mask, steps, 0)
        return Block(self.batch.tokens, self.rule, index.to(device), mask.to(device), lengths)

    @cached_property
    def places(self) -> Tensor:
        """(N,) int64: where each packed token stands when all blocks are laid out one after the other, padding included."""
        places = torch.empty(len(self.batch.tokens), dtype=torch.int64, device=self.batch.tokens.device)
        start = 0
        for block in self.blocks:
            mask = block.mask.flatten()
            places[block.index.flatten()[mask]] = start + mask.nonzero().squeeze(1)
            start += len(mask)
        return places

    def pad(self, states: Tensor) -> list[Tensor]:
        """Packed states (N, width) -> one (b, n, width) a block, zero where padded."""
        sizes = [block.index.numel() for block in self.blocks]
        flat = SpreadRows.apply(states, self.places, sum(sizes))
        return [part.unflatten(0, block.index.shape) for part, block in zip(cut(flat, sizes), self.blocks, strict=True)]

    def unpad(self, blocks: list[Tensor]) -> Tensor:
        """The inverse of `pad`."""
        return CollectRows.apply(join([block.flatten(0, 1) for block in blocks]), self.places)

    @cached_property
    def edges(self) -> Tensor:
        """(2, E) int64 as PyG wants them: row 0 sends, row 1 receives; the diagonal is in."""
        pairs = self._pairs(math.inf)
        assert pairs is not None
        return pairs

    @cached_property
    def sparse(self) -> Edges:
        """`edges` as sparse rows."""
        return Edges.from_pairs(self.edges, len(self.batch.tokens)) if self.few is None else self.few

    @cached_property
    def few(self) -> Edges | None:
        """The edges as sparse rows where that is the faster form (a long sentence, few edges), else nothing; they are counted to see."""
        lengths, on_cpu = self.batch.lengths, self.batch.tokens.device.type == "cpu"
        if int(lengths.max()) < (SPARSE_TOKENS if on_cpu else DENSE_TOKENS):  # an accelerator would have to wait for the count
            return None
        pairs = self._pairs(min(SPARSE_DENSITY * int(lengths.square().sum()), SPARSE_NEIGHBOURS * int(lengths.sum())))
        return None if pairs is None else Edges.from_pairs(pairs, len(self.batch.tokens))

    def _pairs(self, limit: float) -> Tensor | None:
        """`edges`, or nothing as soon as they are more than `limit`.

        They are gathered in one tensor that grows: kept one by one, they would lie between the parts of the adjacency, whose memory could
        then not be used again (1,014 MiB at 16,384 tokens).
        """
        pairs, count = torch.empty(2, len(self.batch.tokens), dtype=torch.int64, device=self.batch.tokens.device), 0
        for block, start, allowed in self._parts():
            padding = block.index.numel() - int(block.lengths.sum())  # each of these positions sees itself
            if count + int(allowed.count_nonzero()) - padding > limit:
                return None
            sentence, receiver, sender = allowed.nonzero(as_tuple=True)
            real = block.mask[sentence, sender]
            found = torch.stack([block.index[sentence, sender], block.index[sentence, start + receiver]])[:, real]
            while count + found.shape[1] > pairs.shape[1]:
                pairs = torch.cat([pairs, torch.empty_like(pairs)], 1)
            pairs[:, count : count + found.shape[1]] = found
            count += found.shape[1]
        return pairs[:, :count]

    def _parts(self) -> Iterator[tuple[Block, int, Tensor]]:
        """All of the adjacency: a block and its (b, n, n), or some rows of a long sentence from `start`, (1, r, n)."""
        for block in self.blocks:
            length = block.index.shape[1]
            if length > DENSE_TOKENS:
                for start, stop in parts_of(length):
                    yield block, start, block.rows(start, stop)
            else:
                yield block, 0, block.dense


def group_by_length(lengths: Tensor) -> list[Tensor]:
    """Split B sentences into groups so that padding each group to its longest member wastes little.

    Greedy from the longest: a sentence opens a new group when padding it costs more than a block's fixed overhead, or the block is full.
    """
    order = torch.argsort(lengths, descending=True, stable=True)
    groups: list[list[int]] = []
    waste = longest = 0
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        waste += longest**2 - length**2
        full = groups and (len(groups[-1]) + 1) * longest**2 > BLOCK_ELEMENTS
        if not groups or full or waste > BLOCK_OVERHEAD:
            groups.append([])
            longest, waste = length, 0
        groups[-1].append(row)
    return [torch.tensor(group) for group in groups]


def barrier_of(allowed: Tensor) -> Tensor:
    """0 where a pair is allowed, else -inf: float32 of the same shape."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -torch.inf)


def parts_of(length: int) -> list[tuple[int, int]]:
    """[start, stop) of the rows of an adjacency that are made together: as many elements as one block has, all up to `DENSE_TOKENS`."""
    step = length if length <= DENSE_TOKENS else max(1, BLOCK_ELEMENTS // length)
    return [(start, min(start + step, length)) for start in range(0, length, step)]
