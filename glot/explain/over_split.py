"""Where weight goes over many texts: on which words, on special tokens and punctuation, on needles; and whether leaving out agrees."""

import string
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from glot.data.stress import needle_words
from glot.explain.measure import Explanation, Side
from glot.report.tables import markdown
from glot.training.metrics import mean_interval
from glot.words import signed

MOST_WORDS, LEAST_COUNT = 20, 3
"""Words in the table, and texts in which a word must stand to be in it."""


@dataclass
class WeightCensus:
    """Sums over the texts of one run.

    Args:
        run: its name.
        pooler: its pooler's name.
        about: what else tells it from other runs, such as the ratio of noise.
        is_stress: whether its texts have needles.

    Examples:
        >>> census = WeightCensus("my-run", "glot")
        >>> census.add(explanation)
    """

    run: str
    pooler: str
    about: str = ""
    is_stress: bool = False
    texts: int = 0
    special: list[float] = field(default_factory=list)
    punctuation: list[float] = field(default_factory=list)
    needles: list[float] = field(default_factory=list)
    needle_shares: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    words: dict[str, list[float]] = field(default_factory=dict)

    def add(self, found: Explanation) -> None:
        """One more text, or both of a pair."""
        for side in found.sides:
            if side.weights is not None:
                self._add(side, np.asarray(side.weights))

    def _add(self, side: Side, weights: np.ndarray) -> None:
        self.texts += 1
        special = np.asarray(side.special, dtype=bool)
        own = [side.words[word].lower() if word >= 0 else "" for word in side.word_of]
        marks = np.array(
            [bool(token.strip("#▁Ġ ")) and all(sign in string.punctuation for sign in token.strip("#▁Ġ ")) for token in side.tokens]
        )
        self.special.append(float(weights[special].sum()))
        self.punctuation.append(float(weights[marks & ~special].sum()))
        if not np.isnan(side.agreement):
            self.agreement.append(side.agreement)
        if self.is_stress:
            hit = np.array([word in needle_words() for word in own])
            self.needles.append(float(weights[hit].sum()))
            self.needle_shares.append(float(hit.mean()))
        by_word: dict[int, float] = {}
        for word, weight in zip(side.word_of, weights.tolist(), strict=True):
            if word >= 0:
                by_word[word] = by_word.get(word, 0.0) + weight
        for word, weight in by_word.items():
            self.words.setdefault(side.words[word].lower().strip(string.punctuation) or side.words[word], []).append(weight * len(weights))

    @property
    def top_words(self) -> list[tuple[str, float, int]]:
        """Word, its mean weight in times of an even token's, and in how many places it stands: the heaviest words."""
        found = [(word, float(np.mean(weights)), len(weights)) for word, weights in self.words.items() if len(weights) >= LEAST_COUNT]
        return sorted(found, key=lambda row: (-row[1], row[0]))[:MOST_WORDS]


def summary_table(found: Sequence[WeightCensus]) -> tuple[list[str], list[list[str]]]:
    """A line per run."""
    stress = any(one.is_stress for one in found)
    header = [
        "run",
        "pooler",
        "texts",
        "special tokens",
        "punctuation",
        *(["needles", "needles among tokens"] if stress else []),
        "rank correlation",
    ]
    rows = []
    for one in found:
        row = [
            f"{one.run}{f' ({one.about})' if one.about else ''}",
            one.pooler,
            f"{one.texts:,}",
            _share(one.special),
            _share(one.punctuation),
        ]
        row += [_share(one.needles), _share(one.needle_shares)] if stress else []
        rows.append([*row, _interval(one.agreement)])
    return header, rows


def in_words(found: Sequence[WeightCensus]) -> str:
    """Tables of runs and of words."""
    parts = [markdown(*summary_table(found))]
    for one in found:
        if one.top_words:
            rows = [[word, f"{weight:.2f}", f"{count:,}"] for word, weight, count in one.top_words]
            parts.append(f"{one.run}, heaviest words:\n{markdown(['word', 'weight, times an even token', 'places'], rows)}")
    parts.append(
        "Shares of the weight, mean over texts and 95 % t-interval. rank correlation: of a token's weight with the drop of the\n"
        "answer without it, within each text. Words that stand in fewer than 3 places are left out."
    )
    return "\n\n".join(parts)


def _share(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, half = mean_interval(values)
    return f"{100 * mean:.1f} %" + (f" ± {100 * half:.1f}" if half is not None else "")


def _interval(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, half = mean_interval(values)
    return signed(mean, 2) + (f" ± {half:.2f}" if half is not None else "")
