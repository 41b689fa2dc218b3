"""Windows: texts longer than a model reads, in overlapping pieces whose states become one sentence again."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from glot.errors import ConfigError

QUARTER = 4
"""Without a stated overlap, two windows share a quarter of the model's limit."""


class Windows(NamedTuple):
    """How a text of more than `limit` tokens is read. The special tokens at its ends stand around every window.

    Attributes:
        limit: most tokens that the model reads.
        overlap: tokens that two neighbouring windows share.
        before: number of special tokens before a text.
        after: number of special tokens behind it.

    Examples:
        >>> Windows(512, 128, before=1, after=1).split(ids)
    """

    limit: int
    overlap: int
    before: int
    after: int

    @property
    def size(self) -> int:
        """A window's tokens without the special ones."""
        return self.limit - self.before - self.after

    def starts(self, count: int) -> list[int]:
        """First tokens of the windows over `count` tokens, special ones left out. The last window ends with the text."""
        step, last = self.size - self.overlap, max(0, count - self.size)
        return [*range(0, last, step), last]

    def split(self, ids: list[int]) -> list[list[int]]:
        """Token ids of a text, special tokens included -> those of its windows."""
        end = len(ids) - self.after
        head, body, tail = ids[: self.before], ids[self.before : end], ids[end:]
        return [[*head, *body[start : start + self.size], *tail] for start in self.starts(len(body))]

    def join(self, states: list[Tensor], length: int) -> Tensor:
        """States of the windows (n_i, d) of a text of `length` tokens -> its states (length, d).

        Of two windows that share tokens, each gives the half that is nearer to its middle. The special tokens are those of the first and
        of the last window.
        """
        count = length - self.before - self.after
        starts = self.starts(count)
        cuts = [0, *((first + self.size + second) // 2 for first, second in pairwise(starts)), count]
        kept = [states[0][: self.before]]
        for (first, last), start, part in zip(pairwise(cuts), starts, states, strict=True):
            kept.append(part[self.before + first - start : self.before + last - start])
        return torch.cat([*kept, states[-1][len(states[-1]) - self.after :]])


def make_windows(name: str, limit: int, overlap: int | None, ends: tuple[int, int]) -> Windows:
    """The windows of a model.

    Args:
        name: of the model.
        limit: most tokens that it reads.
        overlap: `--window_overlap`; None = a quarter of the limit.
        ends: numbers of special tokens before and behind a text.

    Raises:
        ConfigError: two windows would share all their tokens.
    """
    found = Windows(limit, limit // QUARTER if overlap is None else overlap, *ends)
    if found.overlap >= found.size:
        raise ConfigError(f"--window_overlap={found.overlap}: must be below the {found.size} tokens of a window of {name}")
    return found
