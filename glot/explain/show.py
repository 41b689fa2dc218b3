"""An explanation as text for a terminal, as JSON, and as the data of a page."""

import math
from typing import Any

import numpy as np

from glot.explain.measure import Explanation, Side
from glot.report.tables import markdown
from glot.words import signed

MOST_SHOWN = 40
"""Tokens of a text in the terminal's table; of a longer one those with the largest weight or change."""
LEGEND = (
    "weight: share of a token in the sentence vector. without token: change of the answer when its state is left out.\n"
    "without word: change when the word is taken out and the rest is read again. seen by: tokens that its graph joins it with.\n"
    "A weight is no cause: how far it agrees with what leaving out does is the rank correlation."
)
DIGITS = 5


def as_text(found: Explanation, colour: bool = False) -> str:
    """What a terminal shows: the answer, the text with its weights as colours, and a table of tokens."""
    outcome = found.outcome
    lines = [f"{found.run}: {found.pooler} on {found.model}, {answer_in_words(found)}"]
    if outcome.without_edges is not None:
        lines.append(f"without edges: {outcome.without_edges:.3f} ({signed(outcome.without_edges - outcome.value, 3)})")
    if found.layer_weights:
        lines.append("layers: " + ", ".join(f"{layer} {share:.2f}" for layer, share in found.layer_weights.items()))
    for at, side in enumerate(found.sides):
        if colour:
            lines.append(_coloured(side))
        lines += [_table(side, _seen_by(found, at)), _summary(found, side)]
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def answer_in_words(found: Explanation) -> str:
    """The class with its probability, or the score."""
    outcome = found.outcome
    if math.isnan(outcome.value) or outcome.words == "a vector":
        return "no answer: the run was trained without labels; changes are those of the vector's cosine with itself"
    kind = f"answer {outcome.words!r}" if outcome.scores else "score"
    return f"{kind} ({outcome.value:.3f})" if outcome.scores else f"{kind} {outcome.value:.3f}"


def _seen_by(found: Explanation, at: int) -> list[int] | None:
    """For each token of a side, how many tokens the graph joins it with, of both texts; None without a graph."""
    edges, across = found.sides[at].edges, found.cross_edges
    if edges is None and across is None:
        return None
    counts = np.zeros(len(found.sides[at].tokens), dtype=int)
    counts = counts if edges is None else counts + edges.sum(1) - 1  # a token's own loop is not counted
    return (counts if across is None else counts + across.sum(1 - at)).tolist()


def _table(side: Side, seen_by: list[int] | None) -> str:
    rank = np.nan_to_num(np.abs(side.without_token)) if side.weights is None else np.asarray(side.weights)
    shown = sorted(np.argsort(-np.abs(rank), kind="stable")[:MOST_SHOWN].tolist())
    header = ["token", "weight", "without token", "without word", "seen by"]
    rows = []
    for place in shown:
        word = side.word_of[place]
        again = side.without_word[word] if 0 <= word < len(side.without_word) else math.nan
        neighbours = "-" if seen_by is None else str(seen_by[place])
        weight = "-" if side.weights is None else f"{side.weights[place]:.3f}"
        rows.append([side.tokens[place], weight, _signed(side.without_token[place]), _signed(again), neighbours])
    return markdown(header, rows)


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else signed(value, 3)


def _summary(found: Explanation, side: Side) -> str:
    n, parts = len(side.tokens), list[str]()
    if n > MOST_SHOWN:
        parts.append(f"{MOST_SHOWN} of {n} tokens")
    if side.edges is not None and n > 1:
        density = (int(side.edges.sum()) - n) / (n * (n - 1))
        parts.append(f"the graph joins {100 * density:.0f} % of the pairs" + (f" at tau = {found.tau:g}" if found.tau is not None else ""))
    if side.weights is not None:
        share = float(np.asarray(side.weights)[np.asarray(side.special, dtype=bool)].sum())
        parts.append(f"special tokens have {100 * share:.0f} % of the weight")
        if not math.isnan(side.agreement):
            parts.append(f"rank correlation of weight with the drop without the token: {signed(side.agreement, 2)}")
    return "; ".join(parts)


def _coloured(side: Side) -> str:
    """The tokens on backgrounds from plain to red, by weight; by the drop of the answer where there are no weights."""
    strength = np.nan_to_num(-side.without_token if side.weights is None else np.asarray(side.weights)).clip(0)
    top = float(strength.max()) or 1.0
    parts = []
    for token, value in zip(side.tokens, strength / top, strict=True):
        level = int(255 - 155 * value)
        parts.append(f"\x1b[48;2;255;{level};{level}m\x1b[38;2;0;0;0m{token}\x1b[0m")
    return " ".join(parts)


def to_dict(found: Explanation) -> dict[str, Any]:
    """Plain values for JSON; what is no number is None."""
    outcome = found.outcome
    return {
        "run": found.run,
        "pooler": found.pooler,
        "model": found.model,
        "answer": outcome.words,
        "value": _plain(outcome.value),
        "scores": {name: _plain(value) for name, value in outcome.scores.items()},
        "without_edges": _plain(outcome.without_edges),
        "tau": found.tau,
        "layer_weights": {layer: _plain(share) for layer, share in found.layer_weights.items()},
        "sides": [_side_dict(side) for side in found.sides],
        "across": _table_of(found.across),
        "cross_edges": None if found.cross_edges is None else found.cross_edges.astype(int).tolist(),
        "notes": found.notes,
    }


def _side_dict(side: Side) -> dict[str, Any]:
    return {
        "text": side.text,
        "tokens": side.tokens,
        "special": side.special,
        "word_of": side.word_of,
        "words": side.words,
        "weights": None if side.weights is None else [_plain(value) for value in side.weights],
        "matches": None if side.matches is None else [_plain(value) for value in side.matches],
        "without_token": [_plain(value) for value in side.without_token],
        "without_word": [_plain(value) for value in side.without_word],
        "cosines": _table_of(side.cosines),
        "edges": None if side.edges is None else side.edges.astype(int).tolist(),
        "attention": [_table_of(layer) for layer in side.attention],
        "agreement": _plain(side.agreement),
        "is_cut": side.is_cut,
    }


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), DIGITS)


def _table_of(values: np.ndarray | None) -> list[list[float]] | None:
    return None if values is None else np.round(values.astype(np.float64), 3).tolist()
