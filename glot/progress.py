"""Progress on stderr: one bar at a time, and a clock that adds up seconds by phase."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def bar(items: Iterable[Item], title: str, unit: str, enabled: bool, total: int | None = None) -> Iterable[Item]:
    """`items` behind a bar with rate and time to go; silent unless enabled. Bars vanish when done: the log line stays."""
    return tqdm(items, desc=title, unit=unit, total=total, disable=not enabled, leave=False, file=sys.stderr, dynamic_ncols=True)


def counter(title: str, unit: str, total: int, enabled: bool) -> tqdm:
    """A bar that is advanced by hand with `.update(n)`."""
    return tqdm(desc=title, unit=unit, total=total, unit_scale=True, disable=not enabled, leave=False, file=sys.stderr, dynamic_ncols=True)


def say(line: str, enabled: bool = True) -> None:
    """One log line on stderr, above any bar."""
    if enabled:
        tqdm.write(line, file=sys.stderr)


class Clock:
    """Seconds by phase: `with clock.phase("encode"): ...` adds to `clock.seconds["encode"]`."""

    def __init__(self, *phases: str) -> None:
        self.seconds = dict.fromkeys(phases, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block and add it to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
