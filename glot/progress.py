"""Progress on stderr: one bar at a time, and a clock that adds up seconds by phase."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def _off(enabled: bool) -> bool | None:
    """What tqdm's `disable` takes: None = where stderr is no terminal."""
    return None if enabled else True


def bar(items: Iterable[Item], title: str, unit: str, enabled: bool, total: int | None = None) -> Iterable[Item]:
    """`items` behind a bar with rate and time to go; on a terminal only. Bars vanish when done: the log line stays."""
    return tqdm(items, desc=title, unit=unit, total=total, disable=_off(enabled), leave=False, file=sys.stderr, dynamic_ncols=True)


def counter(title: str, unit: str, total: int | None, enabled: bool) -> tqdm:
    """A bar that is advanced by hand with `.update(n)`."""
    return tqdm(
        desc=title, unit=unit, total=total, unit_scale=True, disable=_off(enabled), leave=False, file=sys.stderr, dynamic_ncols=True
    )


log = logging.getLogger("glot")
"""All that is said and is no result. The command line prints it on stderr; a caller in Python sees warnings, and can redirect it."""


def say(line: str, enabled: bool = True) -> None:
    """A line on how things go on."""
    if enabled:
        log.info(line)


def warn(line: str) -> None:
    """A line that a user should read even without a command line."""
    log.warning(line)


@contextmanager
def silence() -> Iterator[None]:
    """Nothing is said inside, because it has been said already."""
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class AboveBars(logging.Handler):
    """Prints log lines on stderr, above any bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        tqdm.write(record.getMessage(), file=sys.stderr)


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
