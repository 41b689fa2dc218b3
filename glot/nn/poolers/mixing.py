"""Single-head attention over the pairs that a graph allows, in three exact forms: by block, by row ranges, on edges.

Token i becomes the mean of the states that it sees, weighted by `softmax_j LeakyReLU(received_i + sent_j)`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from glot.nn.edges import Edges
from glot.nn.graph import barrier_of, parts_of
from glot.nn.segment import widened

NEGATIVE_SLOPE = 0.2


def mix_block(hidden: Tensor, sent: Tensor, received: Tensor, barrier: Tensor) -> Tensor:
    """One block: hidden (b, n, h), logit terms (b, n), additive mask (b, n, n) -> (b, n, h).

    It works in place where autograd allows it, because operations on n x n tensors are bound by memory traffic. LeakyReLU keeps -inf.
    """
    logits = (widened(received).unsqueeze(2) + widened(sent).unsqueeze(1)).add_(barrier)
    return F.leaky_relu_(logits, NEGATIVE_SLOPE).softmax(-1).to(hidden.dtype) @ hidden


class MixByRows(torch.autograd.Function):
    """`mix_block` of one long sentence, (1, n, h), by row ranges. The backward pass recomputes them, so only the inputs are kept.

    Receivers and senders may differ in number: hidden (1, m, h), sent (1, m), received (1, n) -> (1, n, h).

    torch's checkpoint, called once per range, fragments memory: its small objects lie between the ranges, whose space is never reused.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, sent: Tensor, received: Tensor, rows: Callable[[int, int], Tensor]) -> Tensor:
        ctx.save_for_backward(hidden, sent, received)
        ctx.rows = rows
        mixed = hidden.new_empty(*received.shape, hidden.shape[2])
        for start, stop in parts_of(hidden.device, received.shape[1], hidden.shape[1]):
            mixed[:, start:stop] = mix_block(hidden, sent, received[:, start:stop], barrier_of(rows(start, stop)))
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of hidden, sent and received: each row range is recomputed, and its gradients are added up."""
        hidden, sent, received = (saved.detach().requires_grad_() for saved in ctx.saved_tensors)
        sums = [torch.zeros_like(saved) for saved in ctx.saved_tensors]
        for start, stop in parts_of(hidden.device, received.shape[1], hidden.shape[1]):
            with torch.enable_grad():
                own = received[:, start:stop]
                mixed = mix_block(hidden, sent, own, barrier_of(ctx.rows(start, stop)))
            found = torch.autograd.grad(mixed, (hidden, sent, own), grad[:, start:stop])
            for total, part in zip((sums[0], sums[1], sums[2][:, start:stop]), found, strict=True):
                total += part
        return sums[0], sums[1], sums[2], None


class MixOnEdges(torch.autograd.Function):
    """hidden (N, h), logit terms (N,), edges -> mixed (N, h); for the backward pass also the terms' sums and the weights, (E,) each."""

    @staticmethod
    def forward(hidden: Tensor, sent: Tensor, received: Tensor, edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
        sums = received.index_select(0, edges.receivers) + sent.index_select(0, edges.senders)
        weights = edges.softmax(F.leaky_relu(sums, NEGATIVE_SLOPE))
        return edges.mix(weights, hidden), sums, weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Edges], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.edges = inputs[3]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(inputs[0], *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor, None]:
        """The gradient of softmax and LeakyReLU, written out."""
        (hidden, sums, weights), edges = ctx.saved_tensors, ctx.edges
        shares = edges.dot(grad, hidden).mul_(weights)
        shares -= weights * edges.rows.sum(shares).index_select(0, edges.receivers)
        shares = torch.where(sums > 0, shares, NEGATIVE_SLOPE * shares)
        return edges.mix_back(weights, grad), edges.sum_back(shares), edges.rows.sum(shares), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, int, int, None], hidden: Tensor, sent: Tensor, received: Tensor, edges: Edges
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Stacked models (`glot.nn.stack`) one by one: sparse products gain nothing from batching."""
        inputs = [part.movedim(at, 0) for part, at in zip((hidden, sent, received), in_dims[:3], strict=True)]
        heads = [MixOnEdges.apply(*parts, edges) for parts in zip(*inputs, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*heads, strict=True)), (0, 0, 0)
