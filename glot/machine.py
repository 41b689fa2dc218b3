"""The machine, as far as it decides how fast a backbone is."""

from pathlib import Path

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instructions of a CPU that change how fast a backbone is, and in which precision."""


def cpu_flags() -> list[str]:
    """Those of `FLAGS` that the CPU has; empty where the system does not say."""
    account = Path("/proc/cpuinfo")
    words = set(account.read_text().split()) if account.is_file() else set[str]()
    return [flag for flag in FLAGS if flag in words]
