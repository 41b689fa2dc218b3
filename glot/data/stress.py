"""The distractor stress test: a signal of a few words among many, generated.

`faithful` is the release's generator and leaks its label through the length. The others close that door, one after the other: in
`length_matched` words still tell, in `relational` only which words stand in one clause, in `repeat` only a comparison of two words.
Every function states its order of draws: a stream is a function of `random.seed` and nothing else.

Source: the release's `diagnostic_stress_test.py`; `tests/golden/stress_streams.json` pins its streams.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from glot.types import Examples

NEUTRALS = ("still", "again", "indeed", "perhaps")
"""What stands where a modifier could: as many words as modifiers, none of them among the noise."""
MORE_NOUNS = ("boxes", "letters", "bottles", "tables", "engines", "flowers")
"""With the six of the release, the twelve nouns of `repeat`."""


@dataclass(frozen=True)
class StressOptions:
    """How a sample is made.

    Attributes:
        seq_len: words of the longest sample.
        distractor_ratio: share of `seq_len` that is noise.
        signal_position: random, start, middle or end (faithful and length_matched).
        relational_distance: noise words between modifier and noun (all but repeat).
    """

    seq_len: int = 128
    distractor_ratio: float = 0.8
    signal_position: str = "random"
    relational_distance: int = 10

    def num_noise(self, signal: int) -> int:
        """Noise words around a signal of so many elements: the ratio's share, less what does not fit."""
        wanted = int(self.seq_len * self.distractor_ratio)
        return wanted - max(0, wanted + signal - self.seq_len)


@cache
def stress_words() -> dict[str, list[str]]:
    """The release's word lists (nouns, modifiers, contexts, noise) and `fillers`: the noise without modifiers."""
    words = json.loads(resources.files("glot").joinpath("resources/stress_words.json").read_text())
    return words | {"fillers": [word for word in words["noise"] if word not in words["modifiers"]]}


def _place(draw: random.Random, signal: list[str], noise: list[str], options: StressOptions) -> str:
    """The signal at its position among the noise, cut to `seq_len` elements (a context of several words counts as one)."""
    places: dict[str, Callable[[], int]] = {
        "start": lambda: 0,
        "middle": lambda: len(noise) // 2,
        "end": lambda: len(noise),
        "random": lambda: draw.randint(0, len(noise)),
    }
    start = places[options.signal_position]()
    return " ".join([*noise[:start], *signal, *noise[start:]][: options.seq_len])


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
    noise = draw.choices(words["noise"], k=options.num_noise(len(signal)))
    return _place(draw, signal, noise, options), int(positive)


def length_matched_sample(draw: random.Random, options: StressOptions) -> tuple[str, int]:
    """As faithful, but positives get a neutral word and as many fillers, and the noise holds no modifier.

    Order of draws: choice([True, False]) positive?; choice(nouns); choice(contexts); choice(neutrals) or choice(modifiers);
    choices(fillers, k=relational_distance); choices(fillers, k=n); and for a random position randint(0, n).
    """
    words = stress_words()
    positive = draw.choice([True, False])
    noun, context = draw.choice(words["nouns"]), draw.choice(words["contexts"])
    opening = draw.choice(NEUTRALS if positive else words["modifiers"])
    signal = [context, opening, *draw.choices(words["fillers"], k=options.relational_distance), noun]
    noise = draw.choices(words["fillers"], k=options.num_noise(len(signal)))
    return _place(draw, signal, noise, options), int(positive)


def relational_sample(draw: random.Random, options: StressOptions) -> tuple[str, int]:
    """Two clauses [modifier or neutral, fillers, noun]; label 1 where the modifier's clause ends in a noun of the first class.

    Every sample holds one noun of each class, one modifier and one neutral word, so no count of words tells, no length and no position.

    Order of draws: choice([True, False]) positive?; choice(first nouns); choice(second nouns); choice(modifiers); choice(neutrals);
    choice([True, False]) modifier's clause first?; choices(fillers, k=relational_distance) for the first and for the second clause;
    choices(fillers, k=n); randint(0, n) twice, the smaller for the first clause.
    """
    words = stress_words()
    half = len(words["nouns"]) // 2
    positive = draw.choice([True, False])
    nouns = draw.choice(words["nouns"][:half]), draw.choice(words["nouns"][half:])
    modifier, neutral = draw.choice(words["modifiers"]), draw.choice(NEUTRALS)
    modified, other = nouns if positive else nouns[::-1]
    ends = [(modifier, modified), (neutral, other)]
    if not draw.choice([True, False]):
        ends.reverse()
    clauses = [[opening, *draw.choices(words["fillers"], k=options.relational_distance), noun] for opening, noun in ends]
    return _scatter(draw, clauses, options), int(positive)


def repeat_sample(draw: random.Random, options: StressOptions) -> tuple[str, int]:
    """Two nouns among fillers; label 1 where they are the same noun.

    Order of draws: choice([True, False]) same?; sample(twelve nouns, 2); choices(fillers, k=n); randint(0, n) twice.
    """
    words = stress_words()
    same = draw.choice([True, False])
    first, second = draw.sample([*words["nouns"], *MORE_NOUNS], 2)
    return _scatter(draw, [[first], [first if same else second]], options), int(same)


def _scatter(draw: random.Random, parts: list[list[str]], options: StressOptions) -> str:
    """Two parts of the signal at two random places among fillers, in order."""
    fillers = draw.choices(stress_words()["fillers"], k=options.num_noise(sum(map(len, parts))))
    first, second = sorted(draw.randint(0, len(fillers)) for _ in parts)
    return " ".join([*fillers[:first], *parts[0], *fillers[first:second], *parts[1], *fillers[second:]])


VARIANTS: dict[str, Callable[[random.Random, StressOptions], tuple[str, int]]] = {
    "faithful": faithful_sample,
    "length_matched": length_matched_sample,
    "relational": relational_sample,
    "repeat": repeat_sample,
}
"""`--stress_variant` -> sample(draw, options) -> (text, label)."""


def generate_stress(variant: str, options: StressOptions, num_train: int, num_eval: int, seed: int) -> tuple[Examples, Examples]:
    """Training rows, then evaluation rows, from one stream seeded once."""
    draw = random.Random(seed)
    sample = VARIANTS[variant]
    splits = []
    for split, count in (("train", num_train), ("validation", num_eval)):
        rows = [sample(draw, options) for _ in range(count)]
        labels = np.array([label for _, label in rows], dtype=np.float64)
        splits.append(Examples("stress", split, ([text for text, _ in rows],), labels, ("text",)))
    return splits[0], splits[1]


def needles_kept(texts: list[str], kept: list[int]) -> float:
    """Share of texts whose signal is whole when only the first `kept (S,)` characters are read: every signal ends in a noun.

    A text of very few words may end before its noun; then nothing keeps it whole.
    """
    words = stress_words()
    nouns = {*words["nouns"], *MORE_NOUNS}
    ends = [max((match.end() for match in re.finditer(r"\S+", text) if match.group() in nouns), default=None) for text in texts]
    return float(np.mean([end is not None and end <= limit for end, limit in zip(ends, kept, strict=True)]))


@cache
def needle_words() -> frozenset[str]:
    """Every word that a signal is made of: nouns, modifiers and neutral words."""
    words = stress_words()
    return frozenset({*words["nouns"], *words["modifiers"], *NEUTRALS, *MORE_NOUNS})


def needle_tokens(text: str, spans: list[tuple[int, int]]) -> list[int]:
    """The tokens, given by their places in the text, that belong to a noun, a modifier or a neutral word."""
    places = [match.span() for match in re.finditer(r"\S+", text) if match.group() in needle_words()]
    return [index for index, (start, end) in enumerate(spans) if any(first < end and start < last for first, last in places)]
