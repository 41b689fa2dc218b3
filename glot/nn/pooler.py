"""Pooler, the base class of all poolers: token states in, one vector per sentence out."""

from torch import Tensor, nn

from glot.types import TokenBatch


class Pooler(nn.Module):
    """Token states (N, d) -> sentence vectors (B, D).

    A subclass implements `forward`. One that weighs tokens implements `readout` too. A pooler of pairs sets `sides = 2`: its `forward`
    takes the batches of both sentences, and gives features of the pair.

    Args:
        in_dim: d.
        out_dim: D, known without a forward pass.

    Examples:
        >>> class FirstToken(Pooler):
        ...     def __init__(self, in_dim: int) -> None:
        ...         super().__init__(in_dim, in_dim)
        ...
        ...     def forward(self, batch: TokenBatch) -> Tensor:
        ...         return batch.tokens[batch.ptr[:-1]]
    """

    sides = 1
    """Sentences that `forward` takes."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.in_dim, self.out_dim = in_dim, out_dim

    def readout(self, batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
        """Vectors (B, D), and the weight of each token (N,), or None where the pooler does not weigh tokens."""
        return self(batch), None
