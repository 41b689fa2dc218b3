"""Undo the changes that a forward pass makes to a model's attributes, and let one thread pass at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from torch import nn


class OneThread:
    """A lock around what one thread may do at a time; a copy of its owner, in this process or another, has one of its own.

    Hooks, and attributes that a pass changes, belong to the model: a second pass meanwhile would see those of the first.
    """

    def __init__(self) -> None:
        self._lock = RLock()

    def __reduce__(self) -> tuple[type["OneThread"], tuple[()]]:
        return OneThread, ()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Restore on exit the attributes of a model and its submodules as they were on entry.

    Some models keep values from one pass for the next: cached positions, recurrent states, another attention implementation, hooks.
    A text's states would then depend on the texts read before it. Parameters are not restored, because training changes them.
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
    """Copies of a module's dictionaries: buffers, submodules, hooks."""
    return {name: dict(value) for name, value in vars(module).items() if isinstance(value, dict) and name != "_parameters"}


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    if now.keys() != before.keys() or any(now[name] is not value for name, value in before.items()):
        now.clear()
        now.update(before)
