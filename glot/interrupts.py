"""Signals that end a command. SIGTERM ends it as Ctrl-C does, and a training first finishes its step and saves its state."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Terminated(BaseException):
    """The system or a scheduler asked this process to end (SIGTERM)."""


class Stopped(BaseException):
    """A training saved its state and ended, because its process is to end."""


leaving = threading.Event()
"""Set when this process ends: a training in another thread than the main one stops after its step."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


@contextmanager
def ended_by_terminate() -> Iterator[None]:
    """SIGTERM raises `Terminated` in the block: files are closed, locks and temporary folders go."""
    try:
        before = signal.signal(signal.SIGTERM, _terminate)
    except ValueError:  # not the main thread: whoever called us handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


ENDING = (signal.SIG_DFL, signal.default_int_handler, _terminate)
"""Handlers that end a process. Any other belongs to a caller, who decides what a signal means."""


@contextmanager
def between_steps() -> Iterator[Callable[[], bool]]:
    """Within the block, SIGINT and SIGTERM wait: the function that it gives says whether one came. A second one acts at once.

    The block is left soon after the function has said so; the signal is then raised again.
    """
    came: list[int] = []
    before: dict[int, Any] = {}

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            put_back()
            signal.raise_signal(number)

    def put_back() -> None:
        """The handlers of before."""
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {number: handler for number, handler in found.items() if handler in ENDING}
        for number in before:
            signal.signal(number, remember)
    try:
        yield lambda: bool(came) or (not before and leaving.is_set())
    finally:
        put_back()
        if came:
            signal.raise_signal(came[0])
