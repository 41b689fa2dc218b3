"""Pooler and head together. There is no backbone inside, so a checkpoint is small and training needs token states alone."""

from torch import Tensor, nn

from glot.distributed import gather_rows
from glot.types import Batch


class SentenceModel(nn.Module):
    """Each side of a batch through the pooler, all sides through the head."""

    def __init__(self, pooler: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        """The head's output: (B, C) logits or (B,) cosines."""
        vectors = [self.pooler(side) for side in batch.sides]
        if batch.shares:  # the head sees the whole batch, so that the loss is that of one process
            vectors = [gather_rows(rows, counts) for rows, counts in zip(vectors, batch.shares, strict=True)]
        return self.head(*vectors)

    @property
    def trainable_params(self) -> int:
        """Number of parameters that training moves."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
