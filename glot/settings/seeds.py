"""Seeds: how a list of them is written, and how large one may be."""

LARGEST_SEED = 2**32 - 1
"""What every generator in use accepts."""
MOST_SEEDS = 10_000
"""In one range."""


def parse_seeds(text: str) -> list[int]:
    """`0,1,2` or `0..9` (both ends in) or a mixture -> numbers in that order.

    Raises:
        ValueError: anything else, or a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        low, high = int(first), int(last if dots else first)
        if not low <= high <= low + MOST_SEEDS:
            raise ValueError(text)
        seeds += range(low, high + 1)
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) > LARGEST_SEED:
        raise ValueError(text)
    return seeds
