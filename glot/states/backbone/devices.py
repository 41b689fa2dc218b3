"""Where a process computes: the device of a value of `--device`, by one name."""

import torch

from glot.errors import ConfigError

SPREAD = "spread"
"""Value of `--device` that distributes a backbone's layers over all accelerators; the pooler is on the first."""


def pick_device(name: str) -> torch.device:
    """The torch device of a `--device` value; `auto` is the first accelerator, or the CPU where there is none.

    Raises:
        ConfigError: the named device is not on this machine.
    """
    if name in ("auto", SPREAD):
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return _numbered(found or torch.device("cpu"))
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"--device={name}: not on this machine; use auto or cpu") from None
    return _numbered(torch.device(name))


def _numbered(device: torch.device) -> torch.device:
    """`cuda` as the card that it means: two names of one card would be taken for two cards."""
    if device.type in ("cpu", "mps") or device.index is not None:
        return device
    return torch.device(device.type, torch.accelerator.current_device_index())
