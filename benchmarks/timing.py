"""Side-by-side timings: what is compared takes turns in one process, so that a noisy machine slows all of it."""

import time
from collections.abc import Callable
from statistics import median

ROUNDS = 7


class Timings:
    """Seconds of several pieces of work, one row a round.

    Args:
        sides: name -> work. Each is run once unmeasured; then every round runs all of them, starting one further each time.
        rounds: how often. One round (`--smoke`) is not for figures, and nothing runs ahead of it.
        before: run ahead of each piece of work, unmeasured (a cold cache, say).
    """

    def __init__(self, sides: dict[str, Callable[[], object]], rounds: int = ROUNDS, before: Callable[[], object] = lambda: None) -> None:
        for work in sides.values() if rounds > 1 else ():
            before()
            work()
        self.names = names = list(sides)
        self._rows: list[dict[str, float]] = []
        for turn in range(rounds):
            shift = turn % len(names)
            row = {}
            for name in names[shift:] + names[:shift]:
                before()
                start = time.perf_counter()
                sides[name]()
                row[name] = time.perf_counter() - start
            self._rows.append(row)

    def seconds(self, name: str) -> float:
        """Median seconds of one side."""
        return median(row[name] for row in self._rows)

    def ratio(self, name: str, other: str) -> float:
        """Median over the rounds of `name` / `other`: below 1, `name` is faster."""
        return median(row[name] / row[other] for row in self._rows)
