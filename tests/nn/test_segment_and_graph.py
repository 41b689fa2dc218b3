"""Reductions and graphs against loops over sentences."""

import pytest
import torch
from torch.nn import functional as F

from glot.nn.graph import GraphRule, TokenGraph, group_by_length
from glot.nn.segment import segment_max, segment_mean, segment_softmax, segment_sum
from glot.types import TokenBatch

LENGTHS = [3, 1, 7, 2] * 20  # more sentences than one product takes


@pytest.fixture
def batch() -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    return TokenBatch.from_lengths(torch.randn(sum(LENGTHS), 6, generator=generator), torch.tensor(LENGTHS))


def sentences(batch: TokenBatch, values: torch.Tensor) -> list[torch.Tensor]:
    return [values[batch.ptr[row] : batch.ptr[row + 1]] for row in range(len(batch))]


def test_reductions(batch):
    weights = torch.rand(len(batch.tokens))
    parts = sentences(batch, batch.tokens)
    torch.testing.assert_close(segment_sum(batch.tokens, batch), torch.stack([part.sum(0) for part in parts]))
    torch.testing.assert_close(segment_mean(batch.tokens, batch), torch.stack([part.mean(0) for part in parts]))
    torch.testing.assert_close(segment_max(batch.tokens, batch), torch.stack([part.max(0).values for part in parts]))
    weighted = [part.T @ weight for part, weight in zip(parts, sentences(batch, weights), strict=True)]
    torch.testing.assert_close(segment_sum(batch.tokens, batch, weights), torch.stack(weighted))
    scores = batch.tokens[:, 0] * 100  # large enough to overflow without the shift
    torch.testing.assert_close(segment_softmax(scores, batch), torch.cat([part.softmax(0) for part in sentences(batch, scores)]))


def test_reductions_have_the_right_gradients():
    small = TokenBatch.from_lengths(torch.randn(5, 2, dtype=torch.float64), torch.tensor([2, 3]))
    values, scores = small.tokens.clone().requires_grad_(), torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, s: segment_sum(v, small, segment_softmax(s, small)), (values, scores))


def test_token_batch_refuses_offsets_that_do_not_fit():
    for ptr in ([0, 2, 2, 4], [1, 4], [0, 3], [0, 3, 2, 4]):
        with pytest.raises(ValueError, match="rise strictly"):
            TokenBatch(torch.zeros(4, 2), torch.tensor(ptr))


def test_padding_side_and_value_do_not_matter():
    hidden, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    packed = TokenBatch.from_padded(hidden, mask)
    flipped = TokenBatch.from_padded(
        torch.cat([torch.full((2, 2, 3), torch.nan), hidden], 1), torch.tensor([[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]])
    )
    assert torch.equal(packed.tokens, flipped.tokens)
    assert packed.lengths.tolist() == [2, 4] and packed.segment.tolist() == [0, 0, 1, 1, 1, 1]


def naive_edges(batch: TokenBatch, tau: float) -> set[tuple[int, int]]:
    found = set()
    for row in range(len(batch)):
        start, end = int(batch.ptr[row]), int(batch.ptr[row + 1])
        unit = F.normalize(batch.tokens[start:end], dim=1)
        for i in range(end - start):
            for j in range(end - start):
                if i == j or unit[i] @ unit[j] > tau:
                    found.add((start + i, start + j))
    return found


@pytest.mark.parametrize("tau", [-1.0, 0.0, 0.4, 0.999])
def test_threshold_graph(batch, tau):
    edges = TokenGraph(batch, GraphRule(tau=tau)).edges
    assert set(map(tuple, edges.T.tolist())) == naive_edges(batch, tau)
    assert edges.shape[1] == len(naive_edges(batch, tau))


def test_a_zero_token_keeps_its_self_loop_and_no_other():
    batch = TokenBatch.from_lengths(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.1]]), torch.tensor([3]))
    edges = set(map(tuple, TokenGraph(batch, GraphRule(tau=0.5)).edges.T.tolist()))
    assert edges == {(0, 0), (1, 1), (2, 2), (1, 2), (2, 1)}


@pytest.mark.parametrize("kind", ["none", "complete", "random", "knn", "window"])
def test_control_graphs_are_symmetric_and_a_function_of_the_sentence(batch, kind):
    rule = GraphRule(kind, tau=0.2, knn_k=2, window_size=1)
    edges = set(map(tuple, TokenGraph(batch, rule).edges.T.tolist()))
    assert edges == {(j, i) for i, j in edges}
    assert all((i, i) in edges for i in range(len(batch.tokens)))
    for row in range(len(batch)):
        start, end = int(batch.ptr[row]), int(batch.ptr[row + 1])
        alone = TokenBatch.from_lengths(batch.tokens[start:end], torch.tensor([end - start]))
        own = {(i - start, j - start) for i, j in edges if start <= i < end}
        assert own == set(map(tuple, TokenGraph(alone, rule).edges.T.tolist()))
        expected = {
            "none": lambda n: n,
            "complete": lambda n: n * n,
            "window": lambda n: n + 2 * (n - 1),
            "random": lambda n, alone=alone: TokenGraph(alone, GraphRule(tau=0.2)).edges.shape[1],
        }
        if kind in expected:
            assert len(own) == expected[kind](end - start)


def test_random_graph_follows_its_seed(batch):
    edges = [TokenGraph(batch, GraphRule("random", tau=0.2, seed=seed)).edges for seed in (0, 0, 2**32 - 1)]
    assert torch.equal(edges[0], edges[1])
    assert set(map(tuple, edges[0].T.tolist())) != set(map(tuple, edges[2].T.tolist()))


def test_knn_joins_the_nearest():
    angles = torch.tensor([0.0, 0.1, 0.3, 1.5, 1.6])
    batch = TokenBatch.from_lengths(torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([5]))
    edges = {(i, j) for i, j in TokenGraph(batch, GraphRule("knn", knn_k=1)).edges.T.tolist() if i < j}
    assert edges == {(0, 1), (1, 2), (3, 4)}


def test_blocks_hold_every_sentence_once_and_long_ones_stay_apart():
    lengths = torch.tensor([5, 900, 7, 6, 880, 1])
    groups = [set(group.tolist()) for group in group_by_length(lengths, torch.device("cpu"))]
    assert sorted(row for group in groups for row in group) == [0, 1, 2, 3, 4, 5]
    assert {0, 2, 3, 5} in groups
