"""The distractor stress test: a signal of a few words among many, generated.

Source: the release's `diagnostic_stress_test.py`; `tests/golden/stress_streams.json` pins the streams.
"""

import json
import random
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from glot.types import Examples


@dataclass(frozen=True)
class StressOptions:
    """How a sample is made.

    Attributes:
        seq_len: words of the longest sample.
        distractor_ratio: share of `seq_len` that is noise.
        signal_position: random, start, middle or end.
        relational_distance: noise words between modifier and noun.
    """

    seq_len: int = 128
    distractor_ratio: float = 0.8
    signal_position: str = "random"
    relational_distance: int = 10


@cache
def stress_words() -> dict[str, list[str]]:
    """The release's word lists: nouns, modifiers, contexts, noise."""
    return json.loads(resources.files("glot").joinpath("resources/stress_words.json").read_text())


def faithful_sample(draw: random.Random, options: StressOptions) -> tuple[str, int]:
    """One text and its label, 1 where the noun is not modified.

    Order of draws: choice([True, False]) positive?; choice(nouns); choice(contexts); if negative choice(modifiers) and
    choices(noise, k=relational_distance); choices(noise, k=n); and for a random position randint(0, n).
    """
    words = stress_words()
    positive = draw.choice([True, False])
    noun, context = draw.choice(words["nouns"]), draw.choice(words["contexts"])
    signal = [context, noun]
    if not positive:
        modifier = draw.choice(words["modifiers"])
        signal = [context, modifier, *draw.choices(words["noise"], k=options.relational_distance), noun]
    num_noise = int(options.seq_len * options.distractor_ratio)
    num_noise -= max(0, num_noise + len(signal) - options.seq_len)
    noise = draw.choices(words["noise"], k=num_noise)
    places = {
        "start": lambda: 0,
        "middle": lambda: len(noise) // 2,
        "end": lambda: len(noise),
        "random": lambda: draw.randint(0, len(noise)),
    }
    start = places[options.signal_position]()
    elements = [*noise[:start], *signal, *noise[start:]]
    return " ".join(elements[: options.seq_len]), int(positive)


VARIANTS = {"faithful": faithful_sample}
"""`--stress_variant` -> sample(draw, options) -> (text, label)."""


def generate_stress(variant: str, options: StressOptions, num_train: int, num_eval: int, seed: int) -> tuple[Examples, Examples]:
    """Training rows, then evaluation rows, from one stream seeded once."""
    draw = random.Random(seed)
    sample = VARIANTS[variant]
    splits = []
    for split, count in (("train", num_train), ("validation", num_eval)):
        rows = [sample(draw, options) for _ in range(count)]
        labels = np.array([label for _, label in rows], dtype=np.float64)
        splits.append(Examples("stress", split, ([text for text, _ in rows],), labels))
    return splits[0], splits[1]
