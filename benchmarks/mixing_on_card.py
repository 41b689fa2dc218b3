"""One training step of GLOT on an accelerator, in blocks of several sizes: `python -m benchmarks.mixing_on_card [flex]`.

With `flex` flex_attention is timed beside: the same pooler, all sentences padded to the longest, the adjacency as a block mask, compiled.
A logit is the product of the queries (received, 1) and the keys (1, sent), behind LeakyReLU.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.profiler import ProfilerActivity, profile

from benchmarks.step import PygConv
from benchmarks.timing import Timings
from glot.nn import graph as graphs
from glot.nn.graph import Block, GraphRule, TokenGraph
from glot.nn.padding import Padding
from glot.nn.poolers.gat import GatConv
from glot.nn.poolers.glot import GlotPooler
from glot.nn.poolers.mixing import NEGATIVE_SLOPE
from glot.types import TokenBatch

WIDTH, HIDDEN, LEAST_WIDTH = 384, 128, 16
CASES = {
    "32 sentences of 6-15 tokens": (32, 6, 16),
    "32 sentences of 20-100 tokens": (32, 20, 101),
    "32 reviews of 64-512 tokens": (32, 64, 513),
    "4 texts of 2,000 tokens": (4, 2000, 2001),
}
LIMITS = {"blocks of 2^20": (1 << 20, 1 << 14), "blocks of 2^24": (1 << 24, 1 << 22), "blocks of 2^26": (1 << 26, 1 << 24)}
"""Elements of a block, and the padding that is cheaper than another one."""
OURS = "blocks of 2^26"
ROUNDS, STEPS = 4, 6
HEADER = ["batch", "form", "ms per step", "of the first", "kernels and copies", "busy ms"]


def leaky(score: Tensor, *_: Tensor) -> Tensor:
    """A logit of graph attention from the sum of its two terms."""
    return torch.where(score > 0, score, NEGATIVE_SLOPE * score)


class FlexConv(GatConv):
    """Our layer's parameters in flex_attention."""

    attend: Callable[..., Tensor] = staticmethod(flex_attention)
    mask: Callable[..., object] = staticmethod(create_block_mask)

    def forward(self, x: Tensor, graph: TokenGraph) -> Tensor:
        """(N, in) -> (N, h)."""
        hidden = self.lin(x)
        sent, received = self._halves(hidden)
        kept = vars(graph)
        if "flex" not in kept:
            padding = Padding(graph.batch, [torch.arange(len(graph.batch))])
            allowed = Block(graph.batch.tokens, graph.rule, padding.index[0], padding.mask[0], padding.lengths[0]).dense
            rows, size = allowed.shape[:2]
            seen = self.mask(lambda b, h, q, k: allowed[b, q, k], rows, None, size, size, device=str(allowed.device))
            kept["flex"] = padding, seen
        padding, seen = kept["flex"]
        one = torch.ones_like(sent)
        rest = sent.new_zeros(len(sent), LEAST_WIDTH - 2)
        query = torch.cat([torch.stack([received, one], 1), rest], 1)
        key = torch.cat([torch.stack([one, sent], 1), rest], 1)
        query, key, value = (padding.pad(part)[0].unsqueeze(1) for part in (query, key, hidden))
        mixed = self.attend(query, key, value, score_mod=leaky, block_mask=seen, scale=1.0)
        return padding.unpad([mixed.squeeze(1)]) + self.bias


def make(conv: type[GatConv], device: str) -> GlotPooler:
    """The pooler at its default width."""
    torch.manual_seed(1)
    pooler = GlotPooler(WIDTH, HIDDEN, 2, "gat", "cat", GraphRule(tau=0.35))
    for layer in pooler.convs:
        layer.__class__ = conv
    return pooler.to(device)


def work_of(pooler: GlotPooler, batch: TokenBatch) -> Callable[[], None]:
    """Some steps, forward and backward."""

    def work() -> None:
        for _ in range(STEPS):
            pooler(TokenBatch(batch.tokens, batch.ptr)).square().mean().backward()
            pooler.zero_grad(set_to_none=True)
        torch.cuda.synchronize()

    return work


def with_limits(elements: int, overhead: int, work: Callable[[], None]) -> Callable[[], None]:
    """The work under other sizes of blocks."""

    def limited() -> None:
        kept = graphs.CARD_ELEMENTS, graphs.CARD_OVERHEAD
        graphs.CARD_ELEMENTS, graphs.CARD_OVERHEAD = elements, overhead
        work()
        graphs.CARD_ELEMENTS, graphs.CARD_OVERHEAD = kept

    return limited


def in_tf32(work: Callable[[], None]) -> Callable[[], None]:
    """The work with float32 products on tensor cores, which keep ten bits of a factor's mantissa."""

    def rounded() -> None:
        torch.set_float32_matmul_precision("high")
        work()
        torch.set_float32_matmul_precision("highest")

    return rounded


def measure(with_flex: bool) -> Iterator[list[str]]:
    """Rows of `HEADER`: medians of rounds in turn, and what one step of ours launches.

    Args:
        with_flex: flex_attention beside, which compiles for about a minute per case.
    """
    FlexConv.attend, FlexConv.mask = staticmethod(torch.compile(flex_attention)), staticmethod(torch.compile(create_block_mask))
    for name, (count, least, most) in CASES.items():
        torch.manual_seed(0)
        lengths = torch.randint(least, most, (count,))
        batch = TokenBatch.from_lengths(torch.randn(int(lengths.sum()), WIDTH) + 0.8, lengths).to("cuda")
        ours, flex, pyg = (make(conv, "cuda") for conv in (GatConv, FlexConv, PygConv))
        works = {form: with_limits(*limits, work_of(ours, batch)) for form, limits in LIMITS.items()}
        works[f"{OURS}, products in TF32"] = in_tf32(works[OURS])
        if with_flex:
            torch.testing.assert_close(flex(batch), ours(batch), rtol=1e-3, atol=1e-3)
            works["flex_attention"] = work_of(flex, batch)
        if int(lengths.square().sum()) < 1 << 22:
            works["PyG"] = work_of(pyg, batch)
        found = Timings(works, ROUNDS)
        kernels, busy = launched(works[OURS])
        for form in works:
            own = [f"{kernels}", f"{busy:.2f}"] if form == OURS else ["", ""]
            yield [name, form, f"{1e3 * found.seconds(form) / STEPS:.2f}", f"{found.ratio(form, next(iter(works))):.2f}", *own]


def launched(work: Callable[[], None]) -> tuple[int, float]:
    """Kernels and copies of one step, and the milliseconds for which they keep the card busy."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as told:
        work()
    kernels = [event for event in told.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return len(kernels) // STEPS, sum(event.device_time for event in kernels) / STEPS / 1e3


def main(words: list[str]) -> int:
    """Prints the table; where there is no card, a line."""
    if not torch.cuda.is_available():
        print("no CUDA card here, so nothing is measured")
        return 0
    for row in measure("flex" in words):
        print(" | ".join(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
