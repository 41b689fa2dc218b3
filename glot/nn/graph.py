"""The token graph: which tokens of one sentence see each other.

Every rule is symmetric, except for the last bit of a cosine, and keeps the diagonal. It depends on the sentence alone, so a sentence's
vector does not depend on the rest of the batch. A graph is built when a layer asks for it. It is built by blocks of sentences of similar
length, padded together; a long sentence is built by row ranges.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from glot.errors import ConfigError, library_door, reason
from glot.nn.edges import Edges
from glot.nn.padding import Padding
from glot.types import TokenBatch

DENSE_TOKENS = 2048
"""Longest sentence whose adjacency is made as a whole: n x n float32 values take 16 MiB at this length."""
SPARSE_TOKENS = 128
"""A batch whose longest sentence has fewer tokens is mixed in blocks, without counting its edges."""
SPARSE_DENSITY = 0.04
"""Largest share of joined pairs at which edges are taken; benchmarks/README.md compares edges with blocks."""
SPARSE_NEIGHBOURS = 128
"""Largest mean number of edges per token at which edges are taken. Edges are kept; this bound keeps memory linear in the length."""
BLOCK_ELEMENTS = 1 << 20
"""Most elements b * n * n of one block: 4 MiB of float32."""
BLOCK_OVERHEAD = 1 << 14
"""Fixed cost of one more block, in elements: padding up to this many is cheaper than another round of small kernels."""
CARD_ELEMENTS, CARD_OVERHEAD = 1 << 26, 1 << 24
"""Both on an accelerator, where launching a block's kernels takes as long as computing on millions of elements.

With these a step of 32 reviews takes a fifth of the time that a CPU's sizes take there (benchmarks/results/nvidia-h200-first.md)."""


@dataclass(frozen=True)
class GraphRule:
    """How edges are chosen.

    Attributes:
        kind: a name of `RULES`.
        tau: cosine above which (strictly) two tokens are joined, in [-1, 1); for threshold and random.
        knn_k: nearest neighbours per token (knn).
        window_size: distance in tokens up to which two tokens are joined (window).
        seed: seed of the random graph.
        function: a user's own rule, token states (n, d) of one sentence -> (n, n) bool; `kind` is then its name.

    Examples:
        >>> GraphRule("knn", knn_k=4)
    """

    kind: str = "threshold"
    tau: float = 0.3
    knn_k: int = 8
    window_size: int = 2
    seed: int = 0
    function: Callable[[Tensor], Tensor] | None = None


class View:
    """What a rule reads of one block: sizes, mask and cosines. Values that several row ranges share are computed once.

    Args:
        tokens: (N, d), the packed batch.
        index: (b, n) int64, position of each token in it; padding repeats the sentence's first token.
        mask: (b, n) bool, true for real tokens.
        lengths: (b,) on the CPU.
        rule: how edges are chosen.

    Examples:
        >>> block = TokenGraph(batch, rule).blocks[0]
        >>> View(batch.tokens, block.index, block.mask, block.lengths, rule).cosines(0, 1)
    """

    def __init__(self, tokens: Tensor, index: Tensor, mask: Tensor, lengths: Tensor, rule: GraphRule) -> None:
        self.mask, self.lengths, self.rule = mask, lengths, rule
        self._tokens, self._index = tokens, index

    @property
    def size(self) -> int:
        """n, tokens of the longest sentence."""
        return self._index.shape[1]

    def filled(self, rows: int, value: bool) -> Tensor:
        """(b, rows, n) bool, all of one value."""
        return torch.full((len(self._index), rows, self.size), value, device=self._tokens.device)

    @cached_property
    def unit(self) -> Tensor:
        """(b, n, d) float32 rows of length one, normalised before the product as in the release. A zero row stays zero."""
        rows = self._tokens.index_select(0, self._index.flatten()).float()
        F.normalize(rows, dim=-1, out=rows)  # in place: `rows` is a copy
        return rows.unflatten(0, self._index.shape)

    def cosines(self, start: int, stop: int) -> Tensor:
        """Cosines of tokens `start` to `stop` with all tokens of their sentence: (b, r, n)."""
        return self.unit[:, start:stop] @ self.unit.transpose(1, 2)

    @cached_property
    def nearest(self) -> Tensor:
        """(b, n, k) int64: the k nearest neighbours of every token, itself excluded."""
        found = []
        for start, stop in parts_of(self._tokens.device, self.size):
            similar = self.cosines(start, stop).masked_fill(~self.mask.unsqueeze(1), -torch.inf)
            similar.diagonal(offset=start, dim1=1, dim2=2).fill_(-torch.inf)
            found.append(similar.topk(min(self.rule.knn_k, self.size), dim=-1).indices)
        return torch.cat(found, 1)

    @cached_property
    def own(self) -> Tensor:
        """(b, n, n) bool by the user's own rule, sentence by sentence.

        Raises:
            ConfigError: it fails, or gives something else.
        """
        chosen, rule, where = self.filled(self.size, False), self.rule.function, f"--graph_adj={self.rule.kind}"
        for row, length in enumerate(self.lengths.tolist()):
            with library_door(ConfigError, lambda error: f"{where}: fails on a sentence ({reason(error)}); mend it"):
                found = rule(self._tokens[self._index[row, :length]]) if rule is not None else None
            dense = isinstance(found, Tensor) and found.layout == torch.strided and found.dtype == torch.bool
            if not isinstance(found, Tensor) or not dense or tuple(found.shape) != (length, length):
                what = (
                    f"{found.layout} {found.dtype} {tuple(found.shape)}".removeprefix("torch.strided ")
                    if isinstance(found, Tensor)
                    else type(found).__name__
                )
                raise ConfigError(f"{where}: gives {what} for {length} tokens, not bool ({length}, {length}); mend it")
            chosen[row, :length, :length] = found
        return chosen

    @cached_property
    def drawn(self) -> Tensor:
        """(b, n, n) bool: random pairs, as many as the threshold graph joins. Seed, length and number of pairs determine the draw."""
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
    """Two tokens are joined where either is among the other's k nearest."""
    chosen = view.filled(stop - start, False).scatter_(2, view.nearest[:, start:stop], True)
    sentence, other, slot = ((view.nearest >= start) & (view.nearest < stop)).nonzero(as_tuple=True)
    chosen[sentence, view.nearest[sentence, other, slot] - start, other] = True
    return chosen


def _random(view: View, start: int, stop: int) -> Tensor:
    return view.drawn[:, start:stop].clone()


def _own(view: View, start: int, stop: int) -> Tensor:
    return view.own[:, start:stop].clone()


Rule = Callable[[View, int, int], Tensor]
RULES: dict[str, Rule] = {
    "threshold": _threshold,
    "none": _none,
    "complete": _complete,
    "random": _random,
    "knn": _knn,
    "window": _window,
}
"""Graph kind -> rule(view, start, stop) -> (b, r, n) bool: rows `start` to `stop` of the adjacency.

A rule's values on the diagonal and on padding are ignored: `Block` sets the diagonal and clears padding.
"""


@dataclass(frozen=True, eq=False)
class Block:
    """b sentences of similar length, padded to the longest, and their adjacency under one rule.

    Attributes:
        tokens: (N, d), the packed batch.
        rule: how edges are chosen.
        index, mask, lengths: see `View`.

    Examples:
        >>> TokenGraph(batch, GraphRule()).blocks[0].dense
    """

    tokens: Tensor
    rule: GraphRule
    index: Tensor
    mask: Tensor
    lengths: Tensor

    @cached_property
    def dense(self) -> Tensor:
        """(b, n, n) bool: whether token i (row) sees token j (column). Padding sees only itself, so no row is empty."""
        return self._allowed(self.view(), 0, self.index.shape[1])

    @cached_property
    def barrier(self) -> Tensor:
        """(b, n, n) float32, the additive attention mask: 0 where `dense` allows the pair, else -inf."""
        return barrier_of(self.dense)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of `dense`: (b, r, n). Only the random rule makes an n x n tensor for them."""
        return self._allowed(self._kept_view, start, stop)

    def view(self) -> View:
        """A new `View` of this block, which a rule is applied to."""
        return View(self.tokens, self.index, self.mask, self.lengths, self.rule)

    @cached_property
    def _kept_view(self) -> View:
        """Kept for `rows`, which is called once per row range. `dense` makes a view of its own and drops it."""
        return self.view()

    @torch.no_grad()
    def _allowed(self, view: View, start: int, stop: int) -> Tensor:
        with torch.autocast(self.tokens.device.type, enabled=False):  # the graph must not depend on the caller's autocast
            allowed = RULES.get(self.rule.kind, _own)(view, start, stop)
        allowed &= self.mask[:, start:stop].unsqueeze(2) & self.mask.unsqueeze(1)
        allowed.diagonal(offset=start, dim1=1, dim2=2).fill_(True)
        return allowed


@dataclass(frozen=True, eq=False)
class TokenGraph:
    """One rule applied to one batch: in `blocks`, or as `edges` of the whole batch.

    Examples:
        >>> TokenGraph(batch, GraphRule("threshold", tau=0.6)).edges
    """

    batch: TokenBatch
    rule: GraphRule

    @cached_property
    def padding(self) -> Padding:
        """All sentences of the batch, in groups of similar length."""
        return Padding(self.batch, group_by_length(self.batch.lengths, self.batch.tokens.device))

    @cached_property
    def blocks(self) -> list[Block]:
        """One per group of `padding`."""
        parts = zip(self.padding.index, self.padding.mask, self.padding.lengths, strict=True)
        return [Block(self.batch.tokens, self.rule, *part) for part in parts]

    @cached_property
    def edges(self) -> Tensor:
        """(2, E) int64, the edge list in PyG's layout: row 0 sends, row 1 receives, self-loops included."""
        pairs = self._pairs(math.inf)
        assert pairs is not None
        return pairs

    @cached_property
    def sparse(self) -> Edges:
        """`edges` as CSR."""
        return Edges.from_pairs(self.edges, len(self.batch.tokens)) if self.few is None else self.few

    @cached_property
    def few(self) -> Edges | None:
        """`edges` as CSR where that is the faster form (a long sentence with few edges), else None. The edges are counted to decide."""
        lengths = self.batch.lengths
        if int(lengths.max()) < least_counted(self.batch.tokens.device):
            return None
        pairs = self._pairs(min(SPARSE_DENSITY * int(lengths.square().sum()), SPARSE_NEIGHBOURS * int(lengths.sum())))
        return None if pairs is None else Edges.from_pairs(pairs, len(self.batch.tokens))

    def _pairs(self, limit: float) -> Tensor | None:
        """`edges`, or None as soon as there are more than `limit`.

        They are collected in one growing tensor. One tensor per row range would fragment memory: the allocator could not reuse the space
        of the ranges between them.
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
        """The whole adjacency as (block, first row, part). A part is a block's (b, n, n), or a row range (b, r, n) where it is long."""
        for block in self.blocks:
            length = block.index.shape[1]
            if length > DENSE_TOKENS:
                for start, stop in parts_of(block.tokens.device, length):
                    yield block, start, block.rows(start, stop)
            else:
                yield block, 0, block.dense


def least_counted(device: torch.device) -> int:
    """Length in tokens of a batch's longest sentence from which edges are counted. On an accelerator a count waits for it."""
    return SPARSE_TOKENS if device.type == "cpu" else DENSE_TOKENS


def group_by_length(lengths: Tensor, device: torch.device) -> list[Tensor]:
    """Split B sentences into groups so that padding each group to its longest member wastes little.

    Greedy, from the longest. A sentence opens a new group when the group's padding exceeds a block's overhead, or the block is full.

    Args:
        lengths: (B,) on the CPU.
        device: where the blocks are computed.
    """
    elements, overhead = (BLOCK_ELEMENTS, BLOCK_OVERHEAD) if device.type == "cpu" else (CARD_ELEMENTS, CARD_OVERHEAD)
    order = torch.argsort(lengths, descending=True, stable=True)
    groups: list[list[int]] = []
    waste = longest = 0
    for row, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        waste += longest**2 - length**2
        full = groups and (len(groups[-1]) + 1) * longest**2 > elements
        if not groups or full or waste > overhead:
            groups.append([])
            longest, waste = length, 0
        groups[-1].append(row)
    return [torch.tensor(group) for group in groups]


def barrier_of(allowed: Tensor) -> Tensor:
    """The additive attention mask of a bool tensor: 0 where a pair is allowed, else -inf; float32 of the same shape."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -torch.inf)


def parts_of(device: torch.device, rows: int, columns: int | None = None) -> list[tuple[int, int]]:
    """Row ranges [start, stop) of an adjacency that are made together: at most a block's elements, or all rows up to `DENSE_TOKENS`.

    Args:
        device: where they are computed.
        rows: receivers.
        columns: senders; None = as many.
    """
    longest = max(rows, rows if columns is None else columns)
    elements = BLOCK_ELEMENTS if device.type == "cpu" else CARD_ELEMENTS
    step = rows if longest <= DENSE_TOKENS else max(1, elements // longest)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]
