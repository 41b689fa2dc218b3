"""Where a result comes from: command, version, commit, date and machine, without names of people or machines."""

import os
import platform
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import glot
from glot.settings.config import RunConfig
from glot.settings.effects import acting_flags
from glot.settings.index import flag_facts

CHECKOUT = Path(glot.__file__).parent.parent


def origin(config: RunConfig, device: torch.device | str) -> dict[str, Any]:
    """What a reader needs to do a run again, for `result.json`.

    Args:
        config: of the run.
        device: that it ran on.
    """
    return {
        "command": command_of(config),
        "commit": find_commit(CHECKOUT),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else str(device),
        },
    }


def command_of(config: RunConfig) -> str:
    """The shortest command line of `main.py` that makes a configuration; no flag takes a secret."""
    flat, unset = config.to_dict(), RunConfig().to_dict()
    named = [name for name in acting_flags(config) if flat[name] != unset[name] and not flag_facts()[name].switch]
    words = [f"--{name}={int(flat[name]) if isinstance(flat[name], bool) else flat[name]}" for name in named]
    return shlex.join(["main.py", *words])


def find_commit(checkout: Path) -> str | None:
    """The commit of a checkout of this package, with `+` where files differ from it; None where it is no checkout."""
    if not (checkout / ".git").exists():
        return None
    try:
        commit = _git(checkout, "rev-parse", "HEAD")
        return commit + ("+" if _git(checkout, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):  # no git, or one that refuses a folder of another user
        return None


def _git(checkout: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
