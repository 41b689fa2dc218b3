"""What a caller in Python gives, checked where it comes in: texts and rows, numbers, switches, paths."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from glot.errors import ConfigError
from glot.locate import expand_user


def list_of(rows: Any, name: str) -> list[Any]:
    """Rows in the order of any iterable of them.

    Raises:
        ConfigError: a table, a mapping, a set or no iterable at all, whose order or column would be a guess.
    """
    is_one = not isinstance(rows, Iterable) or getattr(rows, "ndim", 1) == 0
    if is_one or isinstance(rows, Mapping | bytes | set | frozenset) or hasattr(rows, "columns"):
        raise ConfigError(f"{name}: takes a text or a list of them, got {type(rows).__name__}; of a table give one column")
    return list(rows)


def unboxed(value: Any) -> Any:
    """A single number of numpy or torch as Python's own; anything else as it is."""
    return value.item() if getattr(value, "ndim", 1) == 0 else value


def whole_number(value: Any, name: str) -> int:
    """A number of at least 1, of numpy or torch too.

    Raises:
        ConfigError: it is none.
    """
    value = unboxed(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}={value!r}: must be a whole number of at least 1")
    return value


def yes_or_no(value: Any, name: str) -> bool:
    """A switch: True or False, of numpy or torch too, or 1 or 0. A word such as "no" would count as True.

    Raises:
        ConfigError: it is none.
    """
    value = unboxed(value)
    if not isinstance(value, int) or value not in (0, 1):
        raise ConfigError(f"{name}={str(value)[:60]!r}: must be True or False")
    return bool(value)


def path_of(value: Any, name: str) -> Path:
    """A path from text or a path.

    Raises:
        ConfigError: it is none, for instance a model that is loaded.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name}: takes a path, not {type(value).__name__}")
    if not str(value) or "\0" in str(value):
        raise ConfigError(f"{name}={str(value)!r}: is no path; name a folder or a file")
    return expand_user(str(value))


def list_of_texts(texts: Any, name: str) -> list[str]:
    """The texts of any iterable of them.

    Raises:
        ConfigError: see `list_of`; something in it that is no text.
    """
    many = list_of(texts, name)
    for place, text in enumerate(many):
        if not isinstance(text, str):
            raise ConfigError(f"{name}: text {place} is {str(text)[:60]!r} ({type(text).__name__}); give strings")
    return many


def split_paths(text: str) -> list[Path]:
    """The paths of a comma list; one path where there is something of the whole name. What is empty between commas is left out."""
    whole = expand_user(text)
    return [whole] if "," not in text or _is_there(whole) else [expand_user(part.strip()) for part in text.split(",") if part.strip()]


def _is_there(path: Path) -> bool:
    """Whether there is something of that name; a list of paths may be longer than any name."""
    try:
        return path.exists()
    except OSError:
        return False
