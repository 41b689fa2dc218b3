"""StackedModel: several models of one architecture trained on the same batches, their weights stacked, one vmapped forward pass for all.

What does not depend on the weights is computed once: reading the states, the token graph, a fixed pooling. The products are batched.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from glot.types import Batch


class StackedModel(nn.Module):
    """R models -> one module with parameters (R, ...).

    Args:
        models: of the same architecture and with equal buffers. They are copied; `unstacked` writes the weights back.

    Raises:
        ValueError: a forward pass would change the buffers (batch norm), or they differ.

    Examples:
        >>> StackedModel([SentenceModel(AdaPooler(384, 128), SingleHead(384, 2)) for _ in range(4)])
    """

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        weights, buffers = stack_module_state(models)
        moving = [name for name in buffers if name.endswith("running_mean")]  # of a batch norm
        moving += [name for name, values in buffers.items() if not bool((values == values[:1]).all())]
        if moving:
            raise ValueError(f"models whose buffers change or differ cannot be stacked: {', '.join(moving)}")
        self._form = [copy.deepcopy(models[0]).to("meta")]  # in a list: nn.Module must not register its weights
        self._names, self._shared = list(weights), list(buffers)
        for place, values in enumerate(buffers.values()):
            self.register_buffer(f"shared_{place}", values[0])
        self.weights = nn.ParameterList(weights.values())

    def __len__(self) -> int:
        return len(self.weights[0])

    def forward(self, batch: Batch) -> Tensor:
        """The models' outputs: (R, B, C), or (R, B) where a model gives (B,)."""

        def one(weights: dict[str, Tensor]) -> Tensor:
            """The output of the model with these weights."""
            return functional_call(self._form[0], weights | buffers, (batch,))

        weights = dict(zip(self._names, self.weights, strict=True))
        buffers = {name: self.get_buffer(f"shared_{place}") for place, name in enumerate(self._shared)}
        return torch.vmap(one, randomness="same")(weights)  # all models share one random graph

    @contextmanager
    def unstacked(self, models: list[nn.Module]) -> Iterator[None]:
        """On leaving the context, also by an exception, write each model's weights back from the stack."""
        try:
            yield
        finally:
            with torch.no_grad():
                for place, model in enumerate(models):
                    for name, weight in model.named_parameters():
                        weight.copy_(self.weights[self._names.index(name)][place])
