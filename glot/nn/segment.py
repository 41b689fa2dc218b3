"""Segment reductions: sum, mean, maximum and softmax over the tokens of each sentence of a packed batch.

All take `values (N, width)` and the batch that says which tokens belong together, and work on any device.
Sums are matrix products with a (sentences x tokens) matrix. On a CPU that is faster than scattering (docs/decisions.md). On an accelerator
it is reproducible, and scattering is not. Products are taken in groups of sentences, so their cost stays linear in the batch.
"""

import itertools

import torch
from torch import Tensor

from glot.nn.places import cut, join
from glot.types import TokenBatch

TOKENS_PER_PRODUCT, TOKENS_ON_CARD = 1024, 1 << 14
"""Approximate number of tokens per product, on a CPU and elsewhere. Its cost grows with sentences times tokens, its overhead does not."""


def widened(values: Tensor) -> Tensor:
    """Values of half precision as float32: sums over many tokens would stop growing in it (256 + 1 = 256 in bfloat16)."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def segment_sum(values: Tensor, batch: TokenBatch, weights: Tensor | None = None) -> Tensor:
    """`sum_i w_i values_i` over each sentence: (B, width). `weights (N,)` default to one."""
    return segment_sums([values], batch, values.new_ones(values.shape[0]) if weights is None else weights)


def segment_sums(parts: list[Tensor], batch: TokenBatch, weights: Tensor) -> Tensor:
    """`segment_sum` of values whose columns come in parts `(N, width_i)`: (B, sum of the widths)."""
    tokens = TOKENS_PER_PRODUCT if weights.device.type == "cpu" else TOKENS_ON_CARD
    size = max(1, tokens * len(batch) // len(weights))
    starts = list(range(0, len(batch), size))
    bounds = [int(batch.ptr[start]) for start in starts] + [len(weights)]
    sizes = [end - start for start, end in itertools.pairwise(bounds)]
    rows = []
    for first, segment, weight, *values in zip(
        starts, cut(batch.segment, sizes), cut(weights, sizes), *(cut(part, sizes) for part in parts), strict=True
    ):
        columns = torch.arange(len(weight), device=weight.device)
        selector = weight.new_zeros(min(size, len(batch) - first), len(weight)).index_put((segment - first, columns), weight)
        rows.append(join([selector.to(value.dtype) @ value for value in values], 1))
    return join(rows)


def segment_mean(values: Tensor, batch: TokenBatch) -> Tensor:
    """Mean over each sentence: (B, width)."""
    return segment_sum(values, batch) / batch.counts.to(values.dtype).unsqueeze(1)


def segment_max(values: Tensor, batch: TokenBatch) -> Tensor:
    """Element-wise maximum over each sentence: (B, width)."""
    if values.device.type == "mps":  # which has no kernel for segment_reduce
        rows = batch.segment.unsqueeze(1).expand_as(values)
        return values.new_full((len(batch), values.shape[1]), -torch.inf).scatter_reduce(0, rows, values, "amax")
    return torch.segment_reduce(values, "max", lengths=batch.counts, axis=0, unsafe=True)  # no checks, which wait for a card


def segment_softmax(scores: Tensor, batch: TokenBatch) -> Tensor:
    """Softmax of `scores (N,)` inside each sentence: (N,), every sentence sums to one. Of half precision it is computed in float32."""
    given, scores = scores.dtype, widened(scores)
    with torch.no_grad():  # the shift cancels, so it needs no gradient
        peak = scores.new_full((len(batch),), -torch.inf).scatter_reduce(0, batch.segment, scores, "amax")
    exponent = (scores - peak[batch.segment]).exp()
    if exponent.device.type == "cpu":
        total = exponent.new_zeros(len(batch)).index_add(0, batch.segment, exponent)
    else:  # whose atomic additions give other last digits each time
        total = segment_sum(exponent.unsqueeze(1), batch).squeeze(1)
    return (exponent / total[batch.segment]).to(given)
