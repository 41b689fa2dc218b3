"""Progress on stderr: one bar at a time, and a clock that adds up seconds by phase."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


INTERVAL = 60.0
"""Seconds between two lines on how far things are, where stderr is no terminal."""


class _Lines:
    """What a bar writes to where stderr is no terminal: its drawings become log lines."""

    encoding = "utf-8"

    def write(self, drawn: str) -> int:
        """Say what was drawn, unless it only wipes a bar."""
        if drawn.strip():
            say(drawn.strip())
        return len(drawn)

    def flush(self) -> None:
        """Nothing waits."""


def _look(total: int | None) -> dict[str, Any]:
    """Options of tqdm: a bar on a terminal; elsewhere a line per `INTERVAL`, none in the first."""
    if sys.stderr is not None and sys.stderr.isatty():
        return {"file": sys.stderr, "dynamic_ncols": True}
    known = total is not None
    form = "{desc}: {n:,}" + " of {total:,}" * known + " {unit}s, {elapsed} so far" + ", {remaining} to go" * known
    return {"file": _Lines(), "bar_format": form, "mininterval": INTERVAL, "maxinterval": INTERVAL, "delay": INTERVAL}


def bar(items: Iterable[Item], title: str, unit: str, enabled: bool, total: int | None = None) -> Iterable[Item]:
    """`items` behind a bar with rate and time to go; in a file, behind a line per minute. Bars vanish when done: the log line stays."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    return tqdm(items, desc=title, unit=unit, total=total, disable=not enabled, leave=False, **_look(total))


def counter(title: str, unit: str, total: int | None, enabled: bool) -> tqdm:
    """A bar that is advanced by hand with `.update(n)`."""
    scale = total is None or total > 9_999  # tqdm would write 3.00/5.00 runs
    return tqdm(desc=title, unit=unit, total=total, unit_scale=scale, disable=not enabled, leave=False, **_look(total))


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
