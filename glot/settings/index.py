"""Flags by name: the section that holds each, what is known of it, its type."""

import dataclasses
import typing
from functools import cache

from glot.settings.facts import FlagFacts
from glot.settings.sections import SECTIONS


@cache
def sections() -> dict[str, str]:
    """Flag name -> the section of RunConfig that holds it."""
    return {row.name: section for section, kind in SECTIONS.items() for row in dataclasses.fields(kind)}


KIND_WORDS = {int: "a whole number", float: "a number", bool: "0 or 1", str: "a text"}
"""Type of a flag -> what it must be, in a message."""


@cache
def flag_facts() -> dict[str, FlagFacts]:
    """Flag name -> what is known of it, section by section."""
    kinds = SECTIONS.values()
    return {row.name: row.metadata["flag"] for kind in kinds for row in dataclasses.fields(kind)}


@cache
def kinds() -> dict[str, type]:
    """Flag name -> str, int, float or bool; optional flags count as their type."""
    found = {}
    for kind in SECTIONS.values():
        for name, hint in typing.get_type_hints(kind).items():
            found[name] = next(part for part in (*typing.get_args(hint), hint) if part is not type(None))
    return found


@cache
def optional_flags() -> frozenset[str]:
    """The flags that may be unset (None)."""
    hints = (hint for kind in SECTIONS.values() for hint in typing.get_type_hints(kind).items())
    return frozenset(name for name, hint in hints if type(None) in typing.get_args(hint))
