"""What is known of a flag beside its name, type and default."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

BACKBONE, POOLER, DATA, STORE, TRAINING, OUTPUT = "backbone", "pooler", "data", "store", "training", "output"
GROUPS = (BACKBONE, POOLER, DATA, STORE, TRAINING, OUTPUT)
"""Groups of `--help`, in order."""
WEIGHTS, ORIGIN = "weights", "origin"
MANY, VAST = 1 << 20, 1 << 30


@dataclass(frozen=True)
class FlagFacts:
    """What is known of a flag beside its name, type and default.

    Attributes:
        group: where it stands in `--help`.
        help: one line, with unit and off value.
        choices: what it allows; empty = anything of its type.
        bounds: smallest and largest number, both allowed.
        acts: name of the condition (`effects.CONDITIONS`) under which it does something; None = always.
        ours: whether it is new here. Without effect, a flag of ours is an error, one of the release's a remark.
        identity: whether a result depends on it, so that it is part of the fingerprint.
        later: whether it came after runs and stores that are to be found again: it then counts only where it is not at its default.
        brought: `WEIGHTS` where a pooler's weights belong to it, `ORIGIN` where it says what they were trained on; a checkpoint brings
            both.
        own: whether a user's own definition may be named in place of a choice (`file.py:Name`).
        many: whether several choices may be given with commas between.
        rare: shown by `--help_all` alone.
        switch: `--name` alone means 1.
        aliases: other words for a choice, in lower case.
        environment: variable that gives it a value where the command line does not.
    """

    group: str
    help: str
    choices: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    acts: str | None = None
    ours: bool = False
    identity: bool = True
    later: bool = False
    brought: str | None = None
    own: bool = False
    many: bool = False
    rare: bool = False
    switch: bool = False
    environment: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)


def flag(default: Any, group: str, text: str, **facts: Any) -> Any:
    """A dataclass field that is a flag; `facts` are those of `FlagFacts`."""
    return dataclasses.field(default=default, metadata={"flag": FlagFacts(group, text, **facts)})


def refused_choice(facts: FlagFacts, value: str) -> str | None:
    """The part of a value that is none of a flag's choices; None where all is allowed."""
    parts = [part.strip() for part in value.split(",")] if facts.many else [value]
    return next((part for part in parts if facts.choices and part not in facts.choices), None)
