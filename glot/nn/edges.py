"""The token graph of a batch as a sparse matrix (CSR), for graphs with few edges.

Source: torch.sparse. On a CPU its products are MKL's, which are faster than gathering one row per edge (benchmarks/README.md).
"""

import warnings
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class SparseRows:
    """The sparsity pattern of a CSR matrix (N, N) with E values.

    Attributes:
        starts: (N + 1,) int32 row pointers; row i owns the values `starts[i]` to `starts[i + 1]`.
        columns: (E,) int32 column indices.
        counts: (N,) int64, values per row.

    Examples:
        >>> pattern = SparseRows.from_sorted(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2)
        >>> product = pattern.matrix(torch.ones(3)) @ torch.ones(2, 4)
    """

    starts: Tensor
    columns: Tensor
    counts: Tensor

    @classmethod
    def from_sorted(cls, rows: Tensor, columns: Tensor, size: int) -> "SparseRows":
        """The pattern with row indices `rows` (E,) in rising order, column indices `columns` (E,) and N = `size`."""
        counts = torch.bincount(rows, minlength=size)
        return cls(F.pad(counts.cumsum(0), (1, 0)).int(), columns.int(), counts)

    def matrix(self, values: Tensor) -> Tensor:
        """The CSR matrix (N, N) with `values` (E,)."""
        _silence_beta()
        size = (len(self.counts), len(self.counts))
        return torch.sparse_csr_tensor(self.starts, self.columns, values, size, check_invariants=False)

    def sum(self, values: Tensor) -> Tensor:
        """Row sums of `values`, (E,) -> (N,)."""
        return torch.segment_reduce(values, "sum", lengths=self.counts, unsafe=True)  # no checks, which wait for a card


@dataclass(frozen=True, eq=False)
class Edges:
    """E directed edges between N tokens, self-loops included.

    Symmetry is not assumed, because the two cosines of one pair may differ in their last bit.

    Attributes:
        receivers: (E,) int32, the receiver of each edge; edges are sorted by receiver, then by sender.
        rows: one row per receiver; its columns are the senders.
        by_sender: (E,) int64, the permutation that sorts the edges by sender.
        sender_rows: one row per sender; its columns are the receivers. Values are taken in the order `by_sender`.

    Examples:
        >>> edges = Edges.from_pairs(torch.tensor([[0, 1, 0], [0, 1, 1]]), 2)
        >>> mixed = edges.mix(edges.softmax(torch.zeros(3)), torch.eye(2))
    """

    receivers: Tensor
    rows: SparseRows
    by_sender: Tensor
    sender_rows: SparseRows

    @classmethod
    def from_pairs(cls, pairs: Tensor, tokens: int) -> "Edges":
        """The edges `pairs` (2, E) int64, in any order, between N = `tokens` tokens; row 0 sends, row 1 receives."""
        senders, receivers = pairs[:, torch.argsort(pairs[1] * tokens + pairs[0])]
        by_sender = torch.argsort(senders, stable=True)
        sender_rows = SparseRows.from_sorted(senders[by_sender], receivers[by_sender], tokens)
        return cls(receivers.int(), SparseRows.from_sorted(receivers, senders, tokens), by_sender, sender_rows)

    @property
    def senders(self) -> Tensor:
        """(E,) int32, the sender of each edge, in the order of `receivers`."""
        return self.rows.columns

    def mix(self, weights: Tensor, states: Tensor) -> Tensor:
        """`sum_j w_ij states_j` over the senders j of every receiver i: weights (E,), states (N, width) -> (N, width)."""
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
        """Softmax over the senders of every receiver, (E,) -> (E,)."""
        peak = torch.segment_reduce(logits, "max", lengths=self.rows.counts, unsafe=True)
        exponents = (logits - peak.index_select(0, self.receivers)).exp_()
        return exponents.div_(self.rows.sum(exponents).index_select(0, self.receivers))


@cache
def _silence_beta() -> None:
    """Trigger and hide torch's once-per-process warning that CSR is in beta, which a user of this package cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


def has_sparse_products(states: Tensor) -> bool:
    """Whether torch has sparse products for such states: float32 or float64, on CUDA or on a CPU with MKL."""
    there = states.device.type == "cuda" or (states.device.type == "cpu" and torch.backends.mkl.is_available())
    return there and states.dtype in (torch.float32, torch.float64)
