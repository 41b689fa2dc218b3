"""The fastest precision of a backbone on the machine at hand: a trial of about a second, remembered for that model and machine."""

import time
from typing import Any

import torch

from glot.errors import ConfigError, StateError, lacks_memory
from glot.machine import cpu_flags
from glot.states.backbone.facts import recall_facts, remember_facts
from glot.states.backbone.model import Backbone
from glot.states.backbone.source import BackboneSource

AUTO = "auto"
FROZEN, TRAINED = ("float32", "bfloat16", "autocast"), ("float32", "autocast")
"""What may be picked for a backbone that is frozen, and for one that is trained: pure half precision would round small updates away."""
GAIN = 0.9
"""Another precision than float32 is picked where it takes at most this share of float32's time."""
TEXTS, CARD_TEXTS, WORDS, SECONDS, LEAST = 16, 128, 48, 0.3, 3
"""Texts of the trial on a CPU and on an accelerator, where so few as 16 take the time of starting kernels, whatever the precision."""


def pick_dtype(source: BackboneSource, device: torch.device, is_trained: bool = False) -> tuple[str, str]:
    """The fastest precision, and a line that says why.

    Args:
        source: the backbone.
        device: where it is going to compute.
        is_trained: see `TRAINED`.

    Raises:
        ConfigError: there is no room for the model.
    """
    count = CARD_TEXTS if device.type != "cpu" else TEXTS
    machine = _machine(device) if device.type == "cpu" else f"{_machine(device)}, {count} texts"
    known: dict[str, Any] = recall_facts(source.identity).get("batch_ms", {}) if source.identity else {}
    times = known.get(machine) or try_dtypes(source, device, count)
    if source.identity and machine not in known and "float32" in times:  # one without may lack memory only now
        remember_facts(source.identity, {"batch_ms": {**known, machine: times}})
    able = {name: times[name] for name in (TRAINED if is_trained else FROZEN) if name in times}
    fastest = min(able, key=lambda name: able[name])
    picked = fastest if "float32" not in able or able[fastest] <= GAIN * able["float32"] else "float32"
    listing = ", ".join(f"{name} {value:.1f} ms" for name, value in able.items())
    return picked, f"--backbone_dtype=auto: {picked} (a batch of {count} texts takes {listing} on {_machine(device)})"


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"a CPU with {' '.join(cpu_flags()) or 'no known flags'}" if device.type == "cpu" else str(device)


def try_dtypes(source: BackboneSource, device: torch.device, count: int = TEXTS) -> dict[str, float]:
    """Milliseconds per batch of `count` texts in each precision that the model runs in; one copy of it is in memory at a time."""
    found: dict[str, float] = {}
    for dtype in FROZEN:
        try:
            found[dtype] = _time(Backbone(source, None, dtype, str(source.num_layers), device), count)
        except (ConfigError, StateError, RuntimeError) as error:  # not in this precision
            if not lacks_memory(error) and (dtype == "float32" or isinstance(error, RuntimeError)):
                raise
    if not found:
        raise ConfigError(f"--model_name_or_path={source.name}: there is no room for it on {device} in any precision; name a smaller one")
    return found


@torch.inference_mode()
def _time(backbone: Backbone, count: int) -> float:
    ids = backbone.tokenise([f"text {number} " + "of some words " * (WORDS // 3) for number in range(count)])
    backbone.encode(ids)  # the first pass checks the model and makes its buffers, which can take longer than all others
    times, end = list[float](), time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < LEAST:
        start = time.perf_counter()
        backbone.encode(ids).tokens.float().cpu()  # waits for an accelerator
        times.append(1000 * (time.perf_counter() - start))
    return round(min(times), 2)
