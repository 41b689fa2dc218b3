"""What a forward pass leaves behind in a model is taken away after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Undo what happens to the attributes of a model and its parts inside the block.

    Some models keep something for the next pass: cached positions, recurrent states, a switched kind of attention, hooks of the library.
    What one text gives would then depend on what was read before it. Parameters are left alone: training replaces them.
    """
    before = [(module, dict(vars(module)), _tables(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, tables in before:
            now = vars(module)
            for name in now.keys() - attributes.keys():
                delattr(module, name)
            for name, value in attributes.items():
                if now.get(name) is not value:
                    now[name] = value
            for name, entries in tables.items():
                _restore(now[name], entries)


def _tables(module: nn.Module) -> dict[str, dict[str, Any]]:
    """The contents of a module's dictionaries: buffers, parts, hooks."""
    return {name: dict(value) for name, value in vars(module).items() if isinstance(value, dict) and name != "_parameters"}


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    if now.keys() != before.keys() or any(now[name] is not value for name, value in before.items()):
        now.clear()
        now.update(before)
