"""The token graph of a batch as sparse rows (CSR): what a graph with few edges is computed with.

Source: torch.sparse, whose products on a CPU are MKL's: 60 to 100 times as fast as gathering a row for every edge and adding it up.
"""

import warnings
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Edges:
    """E pairs of N tokens, ordered by receiver and then by sender, with every pair's mirror image among them.

    Attributes:
        starts: (N + 1,) int32; token i receives from `senders[starts[i]:starts[i + 1]]`.
        senders: (E,) int32.
        receivers: (E,) int32.
        counts: (N,) int64, how many each token receives from; none is 0.
        mirrored: (E,) int64, the place of each pair's mirror image.
    """

    starts: Tensor
    senders: Tensor
    receivers: Tensor
    counts: Tensor
    mirrored: Tensor

    @classmethod
    def from_pairs(cls, pairs: Tensor, tokens: int) -> "Edges":
        """`pairs` (2, E) int64 of senders and receivers in any order, symmetric and with the diagonal."""
        _silence_beta()
        senders, receivers = pairs[:, torch.argsort(pairs[1] * tokens + pairs[0])]
        counts = torch.bincount(receivers, minlength=tokens)
        starts = F.pad(counts.cumsum(0), (1, 0))
        return cls(starts.int(), senders.int(), receivers.int(), counts, torch.argsort(senders, stable=True))

    def mix(self, weights: Tensor, states: Tensor) -> Tensor:
        """`sum_j w_ij states_j` with `weights (E,)`: (N, width)."""
        return self._matrix(weights) @ states

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        """`left_i . right_j` of every pair, (N, width) twice -> (E,)."""
        return torch.sparse.sampled_addmm(self._matrix(left.new_zeros(len(self.senders))), left, right.T, beta=0.0).values()

    def sum(self, values: Tensor) -> Tensor:
        """`sum_j values_ij` of every token, (E,) -> (N,)."""
        return torch.segment_reduce(values, "sum", lengths=self.counts)

    def softmax(self, logits: Tensor) -> Tensor:
        """Over the senders of every receiver, (E,) -> (E,)."""
        peak = torch.segment_reduce(logits, "max", lengths=self.counts)
        exponents = (logits - peak.index_select(0, self.receivers)).exp_()
        return exponents.div_(self.sum(exponents).index_select(0, self.receivers))

    def _matrix(self, values: Tensor) -> Tensor:
        size = (len(self.counts), len(self.counts))
        return torch.sparse_csr_tensor(self.starts, self.senders, values, size, check_invariants=False)


@cache
def _silence_beta() -> None:
    """Torch warns once in a process that its sparse rows are in beta; a user of this package can do nothing about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))


def has_sparse_products(device: torch.device) -> bool:
    """Whether torch can multiply sparse rows there: on a CPU it needs MKL."""
    return device.type != "cpu" or torch.backends.mkl.is_available()
