"""What was measured on a loaded backbone, remembered in the user's cache folder, so that a later run need not load it to know."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import transformers

from glot.locate import read_facts
from glot.states.backbone.source import cache_folder


def recall_facts(identity: str) -> dict[str, Any]:
    """What is remembered of a backbone; empty where it was never loaded here with this version of the library."""
    return read_facts(_file(identity))


def remember_facts(identity: str, facts: dict[str, Any]) -> None:
    """Write facts down; where the cache folder cannot be written they are measured again next time."""
    path = _file(identity)
    if read_facts(path) == facts:
        return
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(facts), encoding="utf-8")
        partial.replace(path)
    except OSError:
        return


def _file(identity: str) -> Path:
    digest = hashlib.sha256(f"{identity} {transformers.__version__}".encode()).hexdigest()
    return cache_folder() / "facts" / f"{digest[:16]}.json"
