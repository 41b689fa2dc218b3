"""Side-by-side timings: what is compared alternates in one process, so that a noisy machine slows both."""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple


class Ratio(NamedTuple):
    """Median seconds of both sides, and the median of the rounds' ratios."""

    ours: float
    other: float
    ratio: float


def compare(ours: Callable[[], object], other: Callable[[], object], rounds: int = 7) -> Ratio:
    """Run both once unmeasured, then alternate for `rounds` rounds; ratio = ours / other."""
    ours(), other()
    pairs = []
    for turn in range(rounds):
        first, second = (ours, other) if turn % 2 == 0 else (other, ours)
        seconds = [_seconds(first), _seconds(second)]
        pairs.append(seconds if turn % 2 == 0 else seconds[::-1])
    return Ratio(median(own for own, _ in pairs), median(their for _, their in pairs), median(own / their for own, their in pairs))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
