"""Facts measured on a loaded backbone, kept in the user's cache folder so that a later run knows them without loading it."""

import hashlib
from pathlib import Path
from typing import Any

import transformers

from glot.cache import cache_folder, read_facts, remember


def recall_facts(identity: str) -> dict[str, Any]:
    """The cached facts of a backbone; empty where it was never loaded on this machine with this version of transformers."""
    return read_facts(_file(identity))


def remember_facts(identity: str, facts: dict[str, Any]) -> None:
    """Cache facts beside those that are known. Where the cache folder cannot be written, they are measured again next time."""
    remember(_file(identity), facts)


def _file(identity: str) -> Path:
    digest = hashlib.sha256(f"{identity} {transformers.__version__}".encode()).hexdigest()
    return cache_folder() / "facts" / f"{digest[:16]}.json"
