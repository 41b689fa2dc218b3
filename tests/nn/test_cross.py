"""The cross graph, crossglot and alignment: against naive loops, PyG and numpy, and against what must not matter."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch_geometric.nn import GATConv

from glot.nn.cross import CROSS_RULES, CrossGraph, CrossRule, rotate
from glot.nn.graph import GraphRule, TokenGraph
from glot.nn.heads import join_pair
from glot.nn.poolers import crossglot as crossglot_module
from glot.nn.poolers.alignment import ALIGNMENT_FEATURES, ONE_WAY, AlignmentPooler
from glot.nn.poolers.crossglot import CrossConv, CrossGlotPooler
from glot.types import TokenBatch

FIRST, SECOND = [5, 1, 9, 3], [4, 7, 2, 3]
KINDS = sorted(set(CROSS_RULES) - {"shuffled"})


def random_side(lengths: list[int], seed: int, d: int = 12) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    return TokenBatch.from_lengths(torch.randn(sum(lengths), d, generator=generator) + 0.7, torch.tensor(lengths))


def random_pair(d: int = 12) -> tuple[TokenBatch, TokenBatch]:
    return random_side(FIRST, 0, d), random_side(SECOND, 1, d)


def take(batch: TokenBatch, rows: list[int]) -> TokenBatch:
    parts = [batch.tokens[batch.ptr[row] : batch.ptr[row + 1]] for row in rows]
    return TokenBatch.from_lengths(torch.cat(parts), torch.tensor([len(part) for part in parts]))


def edges_of(graph: CrossGraph) -> set[tuple[int, int]]:
    """(receiver, sender), tokens of the second side counted behind those of the first."""
    return set(zip(graph.edges.receivers.tolist(), graph.edges.senders.tolist(), strict=True))


def naive_across(first: Tensor, second: Tensor, kind: str, tau: float, k: int) -> np.ndarray:
    cosines = F.normalize(first, dim=1).double().numpy() @ F.normalize(second, dim=1).double().numpy().T
    if kind == "threshold":
        return cosines > tau
    if kind == "knn":
        chosen = np.zeros_like(cosines, dtype=bool)
        for i, j in itertools.product(*map(range, cosines.shape)):
            among_mine = (cosines[i] > cosines[i, j]).sum() < k
            among_yours = (cosines[:, j] > cosines[i, j]).sum() < k
            chosen[i, j] = among_mine or among_yours
        return chosen
    return np.full(cosines.shape, kind == "complete")


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", ["threshold", "knn", "complete", "none"])
def test_edges_are_those_of_a_naive_loop(kind, inside):
    first, second = random_pair()
    rule = CrossRule(kind, tau=0.3, knn_k=2, inside=GraphRule("threshold", 0.4) if inside else None)
    expected, behind = set(), len(first.tokens)
    for row in range(len(first)):
        starts = int(first.ptr[row]), behind + int(second.ptr[row])
        parts = [side.tokens[side.ptr[row] : side.ptr[row + 1]] for side in (first, second)]
        for i, j in zip(*naive_across(*parts, kind, 0.3, 2).nonzero(), strict=True):
            expected |= {(starts[0] + i, starts[1] + j), (starts[1] + j, starts[0] + i)}
        for start, part in zip(starts, parts, strict=True) if inside else ():
            own = TokenGraph(TokenBatch.from_lengths(part, torch.tensor([len(part)])), rule.inside).edges
            expected |= {(start + receiver, start + sender) for sender, receiver in own.T.tolist()}
    assert edges_of(CrossGraph(first, second, rule)) == expected


def test_random_edges_are_as_many_follow_the_seed_and_the_pair_alone():
    first, second = random_pair()
    dense = [int(part.sum()) for part in CrossGraph(first, second, CrossRule("threshold", 0.3)).joined]
    graphs = [CrossGraph(first, second, CrossRule("random", 0.3, seed=seed)) for seed in (0, 0, 1)]
    assert [int(part.sum()) for part in graphs[0].joined] == dense and min(dense) > 0
    assert edges_of(graphs[0]) == edges_of(graphs[1]) != edges_of(graphs[2])
    turned = CrossGraph(second, first, CrossRule("random", 0.3))
    behind, ahead = len(second.tokens), len(first.tokens)
    swap = {place: place + behind if place < ahead else place - ahead for place in range(ahead + behind)}
    assert {(swap[receiver], swap[sender]) for receiver, sender in edges_of(graphs[0])} == edges_of(turned)  # either order, one draw
    alone = CrossGraph(take(first, [2]), take(second, [2]), CrossRule("random", 0.3)).joined[0][0]
    together = CrossGraph(take(first, [2, 3]), take(second, [2, 3]), CrossRule("random", 0.3)).joined[0][0]
    assert torch.equal(together[: alone.shape[0], : alone.shape[1]], alone)


def test_shuffled_joins_another_row_as_densely_and_nothing_where_there_is_none():
    first, second = random_pair()
    pairs = [[side.tokens[side.ptr[row] : side.ptr[row + 1]] for side in (first, second)] for row in range(4)]
    share = [naive_across(*pair, "threshold", 0.3, 0) for pair in pairs]
    rotated = rotate(second)
    assert rotated.lengths.tolist() == [7, 2, 3, 4] and torch.equal(take(rotated, [0]).tokens, take(second, [1]).tokens)
    graph = CrossGraph(first, second, CrossRule("shuffled", 0.3))
    found = np.zeros(4)
    for receiver, sender in edges_of(graph):
        if receiver < len(first.tokens):
            row = int(np.searchsorted(first.ptr.numpy(), receiver, side="right")) - 1
            place = sender - len(first.tokens)
            assert rotated.ptr[row] <= place < rotated.ptr[row + 1]  # the next row's sentence
            found[row] += 1
    cells = np.array(FIRST) * rotated.lengths.numpy()
    assert np.allclose(found, np.round([own.mean() for own in share] * cells))
    alone = CrossGraph(take(first, [0]), take(second, [0]), CrossRule("shuffled", -1.0))
    assert not edges_of(alone)


def oracle(conv: CrossConv, x: Tensor, graph: CrossGraph) -> Tensor:
    """PyG's GATConv without self-loops on the edge list."""
    layer = GATConv(conv.lin.in_features, conv.lin.out_features, edge_dim=1, add_self_loops=False)
    pairs = torch.stack([graph.edges.senders.long(), graph.edges.receivers.long()])
    return functional_call(layer, dict(conv.named_parameters()), (x, pairs, x.new_ones(pairs.shape[1], 1)))


@pytest.mark.parametrize("engine", ["auto", "dense", "edges", "rows"])
@pytest.mark.parametrize("inside", [None, GraphRule("threshold", 0.4)])
@pytest.mark.parametrize("kind", sorted(CROSS_RULES))
def test_every_engine_is_pygs_layer_with_its_gradients(kind, inside, engine, monkeypatch):
    if engine == "rows":
        monkeypatch.setattr(crossglot_module, "DENSE_TOKENS", 1)
        monkeypatch.setattr("glot.nn.graph.DENSE_TOKENS", 1)
        monkeypatch.setattr("glot.nn.graph.BLOCK_ELEMENTS", 16)
    first, second = random_pair()
    torch.manual_seed(0)
    conv = CrossConv(12, 6, "auto" if engine == "rows" else engine)
    x = torch.cat([first.tokens, second.tokens]).requires_grad_()
    graph = CrossGraph(first, second, CrossRule(kind, tau=0.5, knn_k=1, inside=inside))
    own, received = conv.exchange(x, graph)
    if graph.is_rotated:
        x_expected = torch.cat([side.tokens for side in graph.pair]).requires_grad_()
        own, received = conv.exchange(x_expected, graph)
    else:
        x_expected = x
    expected = oracle(conv, x_expected, graph)
    assert torch.allclose(received, expected, atol=1e-5) and torch.equal(own, conv.lin(x_expected))
    wanted = [weight for name, weight in conv.named_parameters() if name != "bias"] + [x_expected]
    ours, theirs = (torch.autograd.grad(found.square().sum(), wanted, allow_unused=True) for found in (received, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(*(torch.zeros(1) if grad is None else grad for grad in (one, other)), atol=1e-4)


def test_few_edges_are_taken_for_long_pairs_alone(monkeypatch):
    long = random_side([200, 3], 0), random_side([150, 4], 1)
    assert CrossGraph(*long, CrossRule("threshold", 0.9)).few is not None
    assert CrossGraph(*long, CrossRule("complete")).few is None
    assert CrossGraph(*random_pair(), CrossRule("threshold", 0.9)).few is None
    monkeypatch.setattr("glot.nn.graph.SPARSE_TOKENS", 1)
    conv = CrossConv(12, 6)
    x = torch.cat([side.tokens for side in long])
    sparse = CrossGraph(*long, CrossRule("threshold", 0.9))
    by_block = CrossConv(12, 6, "dense")
    by_block.load_state_dict(conv.state_dict())
    assert torch.allclose(conv.exchange(x, sparse)[1], by_block.exchange(x, sparse)[1], atol=1e-5)


def test_crossglot_is_a_naive_loop_over_its_equations():
    first, second = random_pair()
    torch.manual_seed(0)
    pooler = CrossGlotPooler(12, 6, 2, CrossRule("threshold", tau=0.4))
    graph = CrossGraph(first, second, pooler.rule)
    state = torch.cat([first.tokens, second.tokens])
    columns = [state]
    for conv in pooler.convs:
        own, received = conv.lin(state), oracle(conv, state, graph)
        columns += [received, received - own, received * own]
        state = (own + received).relu()
    states = torch.cat(columns, 1).split([len(first.tokens), len(second.tokens)])
    rows = []
    for row in range(len(first)):
        vectors = []
        for side, part in zip((first, second), states, strict=True):
            tokens = part[side.ptr[row] : side.ptr[row + 1]]
            vectors.append(torch.softmax(pooler.score_layer(tokens).squeeze(1), 0) @ tokens)
        u, v = vectors
        rows.append(torch.cat([u, v, (u - v).abs(), u * v, F.cosine_similarity(u, v, dim=0).unsqueeze(0)]))
    found = pooler(first, second)
    assert torch.allclose(found, torch.stack(rows), atol=1e-4) and found.shape == (4, pooler.out_dim)


def make(name: str, symmetric: bool = False, kind: str = "threshold"):
    torch.manual_seed(0)
    if name == "alignment":
        return AlignmentPooler(12, kind == "shuffled", symmetric)
    return CrossGlotPooler(12, 6, 1, CrossRule(kind, tau=0.4, inside=GraphRule("knn", knn_k=2)), symmetric)


@pytest.mark.parametrize("name", ["alignment", "crossglot"])
def test_a_pairs_features_depend_on_the_pair_alone_and_on_its_order_where_that_means_something(name):
    first, second = random_pair()
    pooler = make(name)
    together = pooler(first, second)
    alone = torch.cat([pooler(take(first, [row]), take(second, [row])) for row in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)
    order = [2, 0, 3, 1]
    assert torch.allclose(pooler(take(first, order), take(second, order)), together[order], atol=1e-5)
    assert not torch.allclose(pooler(second, first), together, atol=1e-3)
    same = make(name, symmetric=True)
    assert torch.allclose(same(first, second), same(second, first), atol=1e-5)


@pytest.mark.parametrize("name", ["alignment", "crossglot"])
def test_the_control_sees_another_rows_sentence(name):
    first, second = random_pair()
    pooler = make(name, kind="shuffled")
    before = pooler(first, second)
    moved = TokenBatch(second.tokens.clone(), second.ptr)
    moved.tokens[second.ptr[1] : second.ptr[2]] *= -1  # the sentence of row 1, which row 0 is matched with
    change = (pooler(first, moved) - before).abs().amax(1)
    assert change[0] > 1e-3 and change[1] > 1e-3 and change[3] < 1e-5  # row 2 is as dense as row 1's own pair
    assert bool(torch.isfinite(pooler(take(first, [0]), take(second, [0]))).all())


def test_alignment_is_numpy_on_each_pair():
    first, second = random_pair()
    found = AlignmentPooler(12)(first, second).numpy()
    assert found.shape == (4, len(ALIGNMENT_FEATURES)) and len(ALIGNMENT_FEATURES) == 19
    for row in range(4):
        one, other = (side.tokens[side.ptr[row] : side.ptr[row + 1]].numpy() for side in (first, second))
        cosines = (one / np.linalg.norm(one, axis=1, keepdims=True)) @ (other / np.linalg.norm(other, axis=1, keepdims=True)).T
        expected = []
        for best in (cosines.max(1), cosines.max(0)):
            quantiles = [np.quantile(best, level) for level in (0.1, 0.25, 0.5, 0.75)]
            expected += [best.mean(), best.min(), *quantiles, *((best > level).mean() for level in (0.5, 0.7, 0.9))]
        means = one.mean(0), other.mean(0)
        expected.append(means[0] @ means[1] / np.prod([np.linalg.norm(mean) for mean in means]))
        np.testing.assert_allclose(found[row], expected, atol=1e-5)
    there = found[:, : len(ONE_WAY)], found[:, len(ONE_WAY) : -1]
    both = AlignmentPooler(12, symmetric=True)(first, second).numpy()
    np.testing.assert_allclose(both[:, :-1], np.concatenate([(there[0] + there[1]) / 2, np.abs(there[0] - there[1])], 1), atol=1e-6)


def test_alignment_by_row_ranges_and_its_gradient(monkeypatch):
    first, second = random_pair()
    tokens = first.tokens.clone().requires_grad_()
    whole = AlignmentPooler(12)(first.with_tokens(tokens), second)
    grads = [torch.autograd.grad(whole.square().sum(), tokens)[0]]
    monkeypatch.setattr("glot.nn.graph.DENSE_TOKENS", 1)
    monkeypatch.setattr("glot.nn.graph.BLOCK_ELEMENTS", 16)
    parts = AlignmentPooler(12)(first.with_tokens(tokens), second)
    grads.append(torch.autograd.grad(parts.square().sum(), tokens)[0])
    assert torch.allclose(whole, parts, atol=1e-6) and torch.allclose(*grads, atol=1e-5) and float(grads[0].abs().max()) > 0


def test_no_edges_and_equal_tokens_give_finite_gradients():
    lengths = torch.tensor([2, 3])
    same = TokenBatch.from_lengths(torch.ones(5, 12), lengths)
    for kind in KINDS:
        pooler = CrossGlotPooler(12, 6, 2, CrossRule(kind, tau=0.9))
        features = pooler(same, same)
        features.sum().backward()
        grads = [weight.grad for weight in pooler.parameters() if weight.grad is not None]
        assert all(bool(torch.isfinite(numbers).all()) for numbers in (features, *grads))


def test_symmetric_features_do_not_depend_on_the_order():
    u, v = torch.randn(2, 3, 4)
    assert torch.equal(join_pair(u, v, "symmetric"), join_pair(v, u, "symmetric")) and join_pair(u, v, "symmetric").shape == (3, 13)
    assert torch.equal(join_pair(u, v, "cosine"), F.cosine_similarity(u, v, dim=1).unsqueeze(1))
