"""Errors that a user can cause, and the lookup that suggests the nearest name.

    GlotError
    |-- ConfigError       a flag, a YAML file, a folder named by a flag (may hold several problems)
    |-- DataError         a data set: missing file, column, label
    |-- StoreError        hidden states on disk: no room, wrong fingerprint, overflow
    `-- CheckpointError   weights that do not fit the configuration

`glot.cli` prints each problem on one line of stderr and exits with 2. Everything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Row = TypeVar("Row")


class GlotError(Exception):
    """Base of all errors that a user can mend."""

    @property
    def problems(self) -> list[str]:
        """One line for each mistake."""
        return [str(self)]


class ConfigError(GlotError):
    """One or more mistakes in flags or configuration files, reported together."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self._problems = list(problems)

    @property
    def problems(self) -> list[str]:
        return self._problems


class DataError(GlotError):
    """A data set that cannot be read as the task needs it."""


class StoreError(GlotError):
    """Hidden states that cannot be written or must not be used."""


class CheckpointError(GlotError):
    """Weights that do not fit."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`" (did you mean 'cola'?)"`, or nothing where no allowed name comes close."""
    match = difflib.get_close_matches(name.lower(), list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def unknown_name(name: str, allowed: Iterable[str], flag: str) -> str:
    """The one sentence used wherever a name is not among those allowed."""
    allowed = list(allowed)
    return f"--{flag}={name}: unknown{nearest(name, allowed)}; allowed: {', '.join(allowed)}"


def lookup(table: Mapping[str, Row], name: str, flag: str) -> Row:
    """Return `table[name]`.

    Raises:
        ConfigError: the table has no such name; the message suggests the nearest one and lists all.
    """
    if name not in table:
        raise ConfigError(unknown_name(name, table, flag))
    return table[name]
