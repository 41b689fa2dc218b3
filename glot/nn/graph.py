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


@dataclass(frozen=True)
class Block:
    """b sentences of similar length, padded to the longest.

    Attributes:
        index: (b, n) int64, position of each token in the packed batch; padding repeats the sentence's first token.
        mask: (b, n) bool, true for real tokens.
        lengths: (b,) on the CPU.
    """

    index: Tensor
    mask: Tensor
    lengths: Tensor


@dataclass(frozen=True, eq=False)
class TokenGraph:
    """One rule applied to one batch: `dense` for a block at a time, `rows` for a part of a long sentence, `edges` for the whole batch."""

    batch: TokenBatch
    rule: GraphRule

    @cached_property
    def blocks(self) -> list[Block]:
        """All sentences of the batch, each in one block."""
        device = self.batch.tokens.device
        return [make_block(self.batch.ptr, rows, device) for rows in group_by_length(self.batch.lengths)]

    def dense(self, block: Block) -> Tensor:
        """(b, n, n) bool, made once: may token i (row) see token j (column). Padding sees only itself, so no row is empty."""
        if (id(block), "dense") not in self._made:
            self._made[id(block), "dense"] = adjacency(self.batch.tokens, block, self.rule)
        return self._made[id(block), "dense"]

    def barrier(self, block: Block) -> Tensor:
        """(b, n, n) float32, made once: what is added to a logit, 0 where `dense` allows the pair, else -inf."""
        if (id(block), "barrier") not in self._made:
            self._made[id(block), "barrier"] = barrier_of(self.dense(block))
        return self._made[id(block), "barrier"]

    @torch.no_grad()
    def rows(self, block: Block, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the adjacency of a block that holds one sentence, (r, n) bool: nothing of size n x n is made.

        Raises:
            KeyError: a random graph, which is drawn for a whole sentence.
        """
        unit = self._unit(block)
        with torch.autocast(unit.device.type, enabled=False):  # the graph does not depend on the precision of the rest
            nearest = self._nearest(block, unit) if self.rule.kind == "knn" else None
            allowed = ROW_RULES[self.rule.kind](unit, start, stop, self.rule, nearest)
        steps = torch.arange(start, stop, device=unit.device)
        allowed[steps - start, steps] = True
        return allowed

    def _unit(self, block: Block) -> Tensor:
        """(n, d) float32 rows of length one of the sentence of a block, made once."""
        if (id(block), "unit") not in self._made:
            self._made[id(block), "unit"] = unit_rows(self.batch.tokens.index_select(0, block.index[0]))
        return self._made[id(block), "unit"]

    def _nearest(self, block: Block, unit: Tensor) -> Tensor:
        """(n, k): the nearest neighbours of every token of one sentence, made once, some rows at a time."""
        if (id(block), "nearest") not in self._made:
            count = min(self.rule.knn_k, len(unit))
            nearest = torch.empty(len(unit), count, dtype=torch.int64, device=unit.device)
            for start, stop in parts_of(len(unit)):
                similar = unit[start:stop] @ unit.T
                own = torch.arange(len(similar), device=unit.device)
                similar[own, start + own] = -torch.inf
                nearest[start:stop] = similar.topk(count).indices
            self._made[id(block), "nearest"] = nearest
        return self._made[id(block), "nearest"]

    @cached_property
    def _made(self) -> dict[tuple[int, str], Tensor]:
        return {}

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
            if length > DENSE_TOKENS and self.rule.kind in ROW_RULES:
                for start, stop in parts_of(length):
                    yield block, start, self.rows(block, start, stop).unsqueeze(0)
            else:
                yield block, 0, self.dense(block)


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


def make_block(ptr: Tensor, rows: Tensor, device: torch.device) -> Block:
    """Padded positions of `rows (b,)`."""
    lengths = ptr[rows + 1] - ptr[rows]
    steps = torch.arange(int(lengths.max()))
    mask = steps < lengths.unsqueeze(1)
    index = ptr[rows].unsqueeze(1) + torch.where(mask, steps, 0)
    return Block(index.to(device), mask.to(device), lengths)


@torch.no_grad()
def unit_rows(tokens: Tensor) -> Tensor:
    """float32 rows of length one, as the release does before its matrix product; a zero row stays zero."""
    return F.normalize(tokens.float(), dim=-1)


@torch.no_grad()
def adjacency(tokens: Tensor, block: Block, rule: GraphRule) -> Tensor:
    """Apply a rule to the tokens `(N, d)` of one block: (b, n, n) bool with the diagonal set and no edge between padding and tokens."""
    with torch.autocast(tokens.device.type, enabled=False):  # the graph does not depend on the precision of the rest
        allowed = RULES[rule.kind](tokens, block, rule)
    allowed &= block.mask.unsqueeze(1) & block.mask.unsqueeze(2)
    allowed.diagonal(dim1=1, dim2=2).fill_(True)
    return allowed


def barrier_of(allowed: Tensor) -> Tensor:
    """0 where a pair is allowed, else -inf: float32 of the same shape."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -torch.inf)


@torch.no_grad()
def cosines(tokens: Tensor, block: Block) -> Tensor:
    """(b, n, n) float32 cosine similarities of the tokens (N, d) of one block."""
    rows = tokens.index_select(0, block.index.flatten()).float()
    F.normalize(rows, dim=-1, out=rows)  # the copy that was just made
    rows = rows.unflatten(0, block.index.shape)
    return rows @ rows.transpose(1, 2)


def _threshold(tokens: Tensor, block: Block, rule: GraphRule) -> Tensor:
    return cosines(tokens, block) > rule.tau


def _none(tokens: Tensor, block: Block, rule: GraphRule) -> Tensor:
    size = block.index.shape[1]
    return torch.zeros(len(block.index), size, size, dtype=torch.bool, device=tokens.device)


def _complete(tokens: Tensor, block: Block, rule: GraphRule) -> Tensor:
    return ~_none(tokens, block, rule)


def _window(tokens: Tensor, block: Block, rule: GraphRule) -> Tensor:
    steps = torch.arange(block.index.shape[1], device=tokens.device)
    near = (steps.unsqueeze(0) - steps.unsqueeze(1)).abs() <= rule.window_size
    return near.expand(len(block.index), -1, -1).clone()


def _knn(tokens: Tensor, block: Block, rule: GraphRule) -> Tensor:
    similar = cosines(tokens, block).masked_fill(~block.mask.unsqueeze(1), -torch.inf)
    similar.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    count = min(rule.knn_k, similar.shape[-1])
    nearest = similar.topk(count, dim=-1).indices
    chosen = torch.zeros_like(similar, dtype=torch.bool).scatter_(2, nearest, True)
    return chosen | chosen.transpose(1, 2)


def _random(tokens: Tensor, block: Block, rule: GraphRule) -> Tensor:
    """As many pairs as the threshold graph joins, drawn with a seed made of (rule.seed, length, number of pairs)."""
    real = _threshold(tokens, block, rule) & block.mask.unsqueeze(1) & block.mask.unsqueeze(2)
    pairs = real.triu(1).sum((1, 2)).tolist()
    chosen = torch.zeros_like(real)
    for row, (length, count) in enumerate(zip(block.lengths.tolist(), pairs, strict=True)):
        upper = torch.triu_indices(length, length, 1)
        generator = torch.Generator().manual_seed(((rule.seed * 1_000_003 + length) * 1_000_003 + count) % 2**63)
        first, second = upper[:, torch.randperm(upper.shape[1], generator=generator)[:count]].to(tokens.device)
        chosen[row, first, second] = True
        chosen[row, second, first] = True
    return chosen


RULES: dict[str, Callable[[Tensor, Block, GraphRule], Tensor]] = {
    "threshold": _threshold,
    "none": _none,
    "complete": _complete,
    "random": _random,
    "knn": _knn,
    "window": _window,
}
"""Graph kind -> rule(tokens (N, d), block, options) -> (b, n, n) bool; `adjacency` adds the diagonal and cuts the padding."""


def parts_of(length: int) -> list[tuple[int, int]]:
    """[start, stop) of the rows of a long sentence's adjacency that are made together: as many elements as one block has."""
    step = max(1, BLOCK_ELEMENTS // length)
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def _knn_rows(unit: Tensor, start: int, stop: int, rule: GraphRule, nearest: Tensor | None) -> Tensor:
    assert nearest is not None
    chosen = torch.zeros(stop - start, len(unit), dtype=torch.bool, device=unit.device).scatter_(1, nearest[start:stop], True)
    other, slot = ((nearest >= start) & (nearest < stop)).nonzero(as_tuple=True)
    chosen[nearest[other, slot] - start, other] = True
    return chosen


def _window_rows(unit: Tensor, start: int, stop: int, rule: GraphRule, nearest: Tensor | None) -> Tensor:
    steps = torch.arange(len(unit), device=unit.device)
    return (steps.unsqueeze(0) - steps[start:stop].unsqueeze(1)).abs() <= rule.window_size


ROW_RULES: dict[str, Callable[[Tensor, int, int, GraphRule, Tensor | None], Tensor]] = {
    "threshold": lambda unit, start, stop, rule, _: unit[start:stop] @ unit.T > rule.tau,
    "none": lambda unit, start, stop, rule, _: torch.zeros(stop - start, len(unit), dtype=torch.bool, device=unit.device),
    "complete": lambda unit, start, stop, rule, _: torch.ones(stop - start, len(unit), dtype=torch.bool, device=unit.device),
    "knn": _knn_rows,
    "window": _window_rows,
}
"""Graph kind -> rule(unit rows (n, d) of one sentence, start, stop, options, nearest neighbours) -> (r, n) bool, without the diagonal."""
