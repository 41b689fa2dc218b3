"""The user's cache folder, and the JSON files of facts that are kept there."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock


def cache_folder() -> Path:
    """Where converted models and remembered facts live: `$XDG_CACHE_HOME/glot`, else `~/.cache/glot`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glot"


def read_facts(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where the file is missing, damaged or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(path: Path, facts: dict[str, Any]) -> None:
    """Add facts to a JSON object in a file. Where the file cannot be written, nothing is remembered.

    Args:
        path: of the file, which need not be there.
        facts: replace known ones of the same name.
    """
    if facts.items() <= read_facts(path).items():
        return
    with contextlib.suppress(OSError, NotImplementedError):  # the latter of a file system without locks
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):  # of two processes that write together, one would forget the facts of the other
            partial = path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps({**read_facts(path), **facts}, indent=0), encoding="utf-8")
            partial.replace(path)
