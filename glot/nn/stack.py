"""Models of one form that train side by side on the same batches: their weights stacked, one forward pass for all.

What does not depend on the weights (reading the states, the token graph, a fixed pooling) is done once, and the products are batched.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from glot.types import Batch


class StackedModel(nn.Module):
    """R models -> one with parameters (R, ...).

    Args:
        models: of the same form, without buffers; they are copied, see `unstacked`.

    Raises:
        ValueError: a model has buffers, which its batches would move (batch norm).
    """

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        weights, buffers = stack_module_state(models)
        if buffers:
            raise ValueError(f"models with buffers cannot be stacked: {', '.join(buffers)}")
        self._form = [copy.deepcopy(models[0]).to("meta")]  # in a list, so that its weights are not ours
        self._names = list(weights)
        self.weights = nn.ParameterList(weights.values())

    def __len__(self) -> int:
        return len(self.weights[0])

    def forward(self, batch: Batch) -> Tensor:
        """The models' outputs: (R, B, C), or (R, B) where a model gives (B,)."""

        def one(weights: dict[str, Tensor]) -> Tensor:
            """The output of the model with these weights."""
            return functional_call(self._form[0], weights, (batch,))

        weights = dict(zip(self._names, self.weights, strict=True))
        return torch.vmap(one, randomness="same")(weights)  # one random graph for all, as it is the same for every seed

    @contextmanager
    def unstacked(self, models: list[nn.Module]) -> Iterator[None]:
        """After the block, however it ends, each model has its weights of the stack."""
        try:
            yield
        finally:
            with torch.no_grad():
                for place, model in enumerate(models):
                    for name, weight in model.named_parameters():
                        weight.copy_(self.weights[self._names.index(name)][place])
