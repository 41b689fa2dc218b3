"""The token graph of a batch as sparse rows (CSR): what a graph with few edges is computed with.

Source: torch.sparse, whose products on a CPU are MKL's: 20 to 70 times as fast as gathering a row for every edge and adding it up
(8,192 tokens, 5 to 128 neighbours).
"""

import warnings
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Where the values (E,) of a sparse matrix (N, N) stand, row by row.

    Attributes:
        starts: (N + 1,) int32; row i owns the values `starts[i]` to `starts[i + 1]`.
        columns: (E,) int32.
        counts: (N,) int64, values in a row.
    """

    starts: Tensor
    columns: Tensor
    counts: Tensor

    @classmethod
    def from_sorted(cls, rows: Tensor, columns: Tensor, size: int) -> "SparseRows":
        """`rows` (E,) in rising order, `columns` (E,), N."""
        counts = torch.bincount(rows, minlength=size)
        return cls(F.pad(counts.cumsum(0), (1, 0)).int(), columns.int(), counts)

    def matrix(self, values: Tensor) -> Tensor:
        """The sparse matrix with `values` (E,)."""
        _silence_beta()
        size = (len(self.counts), len(self.counts))
        return torch.sparse_csr_tensor(self.starts, self.columns, values, size, check_invariants=False)

    def sum(self, values: Tensor) -> Tensor:
        """Of every row, (E,) -> (N,)."""
        return torch.segment_reduce(values, "sum", lengths=self.counts)


@dataclass(frozen=True, eq=False)
class Edges:
    """E pairs of N tokens that see each other, every token itself among them.

    Two cosines of one pair may differ in their last bit, so nothing here relies on a pair's mirror image being there.

    Attributes:
        receivers: (E,) int32 in rising order, and for each its senders in rising order.
        rows: one row per receiver, its columns the senders.
        by_sender: (E,) int64, the pairs in the order of their senders.
        sender_rows: one row per sender, its columns the receivers; values are taken in the order `by_sender`.
    """

    receivers: Tensor
    rows: SparseRows
    by_sender: Tensor
    sender_rows: SparseRows

    @classmethod
    def from_pairs(cls, pairs: Tensor, tokens: int) -> "Edges":
        """`pairs` (2, E) int64 of senders and receivers in any order; N."""
        senders, receivers = pairs[:, torch.argsort(pairs[1] * tokens + pairs[0])]
        by_sender = torch.argsort(senders, stable=True)
        sender_rows = SparseRows.from_sorted(senders[by_sender], receivers[by_sender], tokens)
        return cls(receivers.int(), SparseRows.from_sorted(receivers, senders, tokens), by_sender, sender_rows)

    @property
    def senders(self) -> Tensor:
        """(E,) int32, beside `receivers`."""
        return self.rows.columns

    def mix(self, weights: Tensor, states: Tensor) -> Tensor:
        """`sum_j w_ij states_j` over the senders j of every receiver i, weights (E,), states (N, width) -> (N, width)."""
        return self.rows.matrix(weights) @ states

    def mix_back(self, weights: Tensor, states: Tensor) -> Tensor:
        """`sum_i w_ij states_i` over the receivers i of every sender j."""
        return self.sender_rows.matrix(weights.index_select(0, self.by_sender)) @ states

    def sum_back(self, values: Tensor) -> Tensor:
        """`sum_i values_ij` over the receivers of every sender, (E,) -> (N,)."""
        return self.sender_rows.sum(values.index_select(0, self.by_sender))

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        """`left_i . right_j` of receiver i and sender j, (N, width) twice -> (E,)."""
        return torch.sparse.sampled_addmm(self.rows.matrix(left.new_zeros(len(self.receivers))), left, right.T, beta=0.0).values()

    def softmax(self, logits: Tensor) -> Tensor:
        """Over the senders of every receiver, (E,) -> (E,)."""
        peak = torch.segment_reduce(logits, "max", lengths=self.rows.counts)
        exponents = (logits - peak.index_select(0, self.receivers)).exp_()
        return exponents.div_(self.rows.sum(exponents).index_select(0, self.receivers))


@cache
def _silence_beta() -> None:
    """Torch warns once in a process that its sparse rows are in beta; a user of this package can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


def has_sparse_products(states: Tensor) -> bool:
    """Whether torch can multiply sparse rows with such states: not in half precision, on a CPU with MKL alone, on no third device."""
    there = states.device.type == "cuda" or (states.device.type == "cpu" and torch.backends.mkl.is_available())
    return there and states.dtype in (torch.float32, torch.float64)
