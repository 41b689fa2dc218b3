"""Sources of own poolers that this user has run: what comes with somebody else's run folder is not run unasked."""

from pathlib import Path
from typing import NamedTuple

from glot.cache import cache_folder, read_facts, remember
from glot.errors import CheckpointError


class Trust(NamedTuple):
    """Whose code a command may run: that of a model (`--trust_remote_code`), that of a run's pooler (`--trust_pooler`)."""

    remote_code: bool = False
    pooler: bool = False


DISTRUST = Trust()


NAMED = "name:"
"""Before the names of own code in the file; several may share a hash, for of an installed package it is that of a module."""


def _trusted_file() -> Path:
    return cache_folder() / "trusted-code.json"


def remember_trusted(sha256: str, name: str) -> None:
    """Write down that the user named this code in a command of their own."""
    remember(_trusted_file(), {sha256: name, f"{NAMED}{name}": sha256})  # where it cannot, loading the run takes --trust_pooler=1


def check_named(name: str, where: Path) -> None:
    """Refuse code of an installed package that a run folder names and that this user has never named in a command of their own.

    Raises:
        CheckpointError: the name is not known here.
    """
    known = read_facts(_trusted_file())
    if f"{NAMED}{name}" not in known and name not in known.values():  # as older versions wrote it
        raise CheckpointError(
            f"{where}: takes code of an installed package ({name}) that was never trained with here; look at that package, "
            "then run it with --trust_pooler=1 (in Python trust_pooler=True)"
        )


def check_trusted(sha256: str, name: str, where: Path) -> None:
    """Refuse code that comes with a run folder and that this user has never trained with.

    Raises:
        CheckpointError: it is not known here.
    """
    if sha256 not in read_facts(_trusted_file()):
        raise CheckpointError(
            f"{where}: holds code of its own ({name}) that was never trained with here; look at it in config.json, "
            "then run it with --trust_pooler=1 (in Python trust_pooler=True)"
        )
