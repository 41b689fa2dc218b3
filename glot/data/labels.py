"""What a column of labels means: classes with names in an order, or scores in a range; and the numbers that training takes."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence, Sized
from decimal import Context, Decimal, InvalidOperation
from typing import Any, NamedTuple

import numpy as np

from glot.errors import nearest
from glot.utf8 import is_utf8

AUTO, CLASS, SCORE, NONE = "auto", "class", "score", "none"
MOST_WHOLE_CLASSES = 20
"""More different whole numbers than this are taken for scores where there are two text columns."""
TRUE, FALSE = ("true", "yes"), ("false", "no")


class LabelFacts(NamedTuple):
    """What the labels of a task are.

    Attributes:
        kind: `class`, `score`, or `none`.
        names: of the classes in order; label i is `names[i]`. Empty for scores.
        low, high: range of the scores; 0 and 0 for classes.
    """

    kind: str
    names: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds them."""
        own: dict[str, dict[str, Any]] = {CLASS: {"classes": list(self.names)}, SCORE: {"range": [self.low, self.high]}}
        return {"kind": self.kind, **own.get(self.kind, {})}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "LabelFacts":
        """The inverse of `to_dict`."""
        low, high = saved.get("range", (0.0, 0.0))
        return cls(saved["kind"], tuple(saved.get("classes", ())), float(low), float(high))


class Label(NamedTuple):
    """A label as a file holds it: its kind (number, word, truth value), its value, and the name that it has as a class."""

    kind: str
    value: float
    name: str


NUMBER, WORD, TRUTH = "a number", "a word", "a truth value"


def read_label(raw: Any, is_text: bool) -> Label | None:
    """A cell as a label; None where there is none.

    Args:
        raw: text, number, truth value, or None.
        is_text: whether the file holds nothing but text (CSV), so that `1`, `0.5` and `true` are read by their look.

    Raises:
        ValueError: something else, or not finite.
    """
    if raw is None or (isinstance(raw, str) and not raw.strip()) or (isinstance(raw, float) and math.isnan(raw)):
        return None
    if isinstance(raw, bool):
        return Label(TRUTH, float(raw), str(raw).lower())
    if isinstance(raw, str):
        word = raw.strip()
        if is_text and word.lower() in ("true", "false"):
            return Label(TRUTH, float(word.lower() == "true"), word.lower())
        if not is_utf8(word):
            raise ValueError(f"{word!r}: holds half a surrogate pair; mend it")
        number = _as_number(word) if is_text else None
        return Label(WORD, 0.0, word) if number is None else _number(number)
    if isinstance(raw, int | float):
        return _number(Decimal(raw) if isinstance(raw, int) else Decimal(repr(raw)))
    raise ValueError(f"{str(raw)[:40]!r} ({type(raw).__name__}); a word, a number or true/false")


def _number(exact: Decimal) -> Label:
    """A number with its exact name, so that two long ones stay two."""
    try:
        value = float(exact)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"{str(exact)[:40]}; a number that fits")
    return Label(NUMBER, value, f"{exact.normalize(EXACT):f}" if exact else "0")


EXACT = Context(prec=400)
"""Digits of a number's name: as many as the largest float has, and more."""


def _as_number(word: str) -> Decimal | None:
    """The number that a cell of text shows; words such as `nan` and `1_000`, which Python would take, are words, and so are codes (007)."""
    if not word or word[-1] not in "0123456789." or "_" in word or re.match(r"[+-]?0\d", word):
        return None
    try:
        return Decimal(word)
    except InvalidOperation:
        return None


def decide_kind(labels: Sequence[Label], asked: str, num_texts: int) -> tuple[str, str]:
    """`class` or `score`, and why in one line.

    Args:
        labels: of the training rows, all of one kind.
        asked: `--label_kind`.
        num_texts: text columns; one text can only be classified.

    Raises:
        ValueError: the labels cannot be what is asked for, or look like scores of a single text; ready to print behind the column.
    """
    different = sorted({label.name for label in labels})
    shown = f"{len(different)} different labels such as {', '.join(different[:3])}"
    if asked == CLASS:
        return CLASS, f"classes, as asked for: {shown}"
    is_numbers = labels[0].kind == NUMBER
    broken = is_numbers and any(not label.value.is_integer() for label in labels)
    scores = broken or (is_numbers and num_texts == 2 and len(different) > MOST_WHOLE_CLASSES)
    if asked == SCORE:
        if num_texts != 2:
            raise ValueError("--label_kind=score: a score belongs to two texts; name two --text_columns, or use --label_kind=class")
        if not is_numbers:
            raise ValueError(f"--label_kind=score: {different[0]!r} is {labels[0].kind}, not a number; use --label_kind=class")
        return SCORE, f"scores, as asked for: {shown}"
    if scores and num_texts == 1:
        raise ValueError(
            f"--label_kind=auto: {shown} look like scores, and one text can only be classified; "
            "use --label_kind=class, or name two --text_columns"
        )
    if scores:
        why = "not all are whole numbers" if broken else f"more than {MOST_WHOLE_CLASSES} different whole numbers"
        return SCORE, f"scores of two texts ({why}); --label_kind=class takes them for classes"
    further = "; --label_kind=score takes them for scores" if is_numbers and num_texts == 2 else ""
    return CLASS, f"{len(different)} classes ({', '.join(different[:5])}{', ...' * (len(different) > 5)}){further}"


def _all_of(rows: Sized) -> str:
    return f"all {len(rows)} training rows have" if len(rows) > 1 else "the only training row has"


def find_facts(labels: Sequence[Label], kind: str, label_range: tuple[float, float] | None) -> LabelFacts:
    """Names and order of the classes (numbers by value, words by the alphabet), or the range of the scores.

    Raises:
        ValueError: one class only, or one score only.
    """
    if kind == CLASS:
        by_name = {label.name: label for label in labels}
        names = sorted(by_name, key=lambda name: (by_name[name].value, name))
        if len(names) < 2:
            raise ValueError(f"{_all_of(labels)} label {names[0]!r}; there must be at least two classes")
        return LabelFacts(CLASS, tuple(names))
    values = [label.value for label in labels]
    low, high = label_range or (min(values), max(values))
    if low == high:
        raise ValueError(f"{_all_of(labels)} score {low:g}; there must be at least two")
    return LabelFacts(SCORE, (), low, high)


def encode_label(label: Label, facts: LabelFacts, places: dict[str, int]) -> float:
    """The number that training takes: a class's place in `facts.names` (`places` is its inverse), or the score itself.

    Raises:
        ValueError: an unknown class, or a score outside the range; ready to print behind the row.
    """
    if facts.kind == CLASS:
        if label.name not in places:
            shown = ", ".join(facts.names[:8]) + ", ..." * (len(facts.names) > 8)
            raise ValueError(f"{label.name!r} is no class of the training rows{nearest(label.name, facts.names)}; there are {shown}")
        return float(places[label.name])
    if label.kind != NUMBER:
        raise ValueError(f"{label.name!r} is {label.kind}, not a score")
    if not facts.low <= label.value <= facts.high:
        raise ValueError(f"{label.value:g} lies outside the range {facts.low:g} to {facts.high:g}; mend it, or widen --label_range")
    return label.value


def one_kind(kinds: Counter[str]) -> str | None:
    """The kind that most labels of a column have, where they have several; None where all have one."""
    return kinds.most_common(1)[0][0] if len(kinds) > 1 else None


LABEL_SCALES: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "0_1": lambda scores, low, high: (scores - low) / (high - low),
    "-1_1": lambda scores, low, high: (scores - low) / ((high - low) / 2) - 1,
    "raw": lambda scores, low, high: scores,
}
"""`--label_scale` -> target of the cosine, from scores between low and high."""
