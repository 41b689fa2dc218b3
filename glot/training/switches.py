"""Torch's process-wide switches, set for a run and put back after it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

DENORMAL = 1e-40
"""A float32 number below the normal ones."""


def flushes_denormals() -> bool:
    """Whether this thread takes denormal numbers for zero."""
    return bool((torch.tensor([DENORMAL]) * 1.0 == 0).all())


@contextmanager
def run_switches() -> Iterator[None]:
    """Flush denormal numbers to zero on the CPU during the block.

    The gradients of a saturated softmax are denormal, and their products take 10 to 30 times as long (docs/decisions.md).
    Threads inherit the switch when they start, so it is set before the first product of a run.
    """
    before = flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
