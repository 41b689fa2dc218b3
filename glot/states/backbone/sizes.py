"""The size of a backbone, by its files."""

import math

from safetensors import safe_open

from glot.cache import read_facts
from glot.errors import ConfigError, library_door, reason
from glot.states.backbone.source import BackboneSource


def count_weights(source: BackboneSource) -> int | None:
    """Number of weights in a backbone's files, by their headers; None where they are not readable as safetensors on this machine."""
    whole, index = source.files / "model.safetensors", read_facts(source.files / "model.safetensors.index.json")
    paths = [whole] if whole.is_file() else [source.files / name for name in sorted({*index.get("weight_map", {}).values()})]
    total = 0
    try:
        with library_door(ConfigError, reason):
            for path in paths:
                with safe_open(path, "pt") as file:
                    total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no dictionary
    except ConfigError:  # whoever loads them says what is wrong; here it is one number less
        return None
    return total or None
