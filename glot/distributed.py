"""Processes of one run: several ranks, as `torchrun` or `accelerate launch` starts them, or one process alone.

Only this module imports accelerate. Every rank must reach the collective calls in the same order.
"""

import itertools
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from glot.errors import ConfigError

if TYPE_CHECKING:  # torch is imported late, so that a wrong command line fails at once
    from torch import nn

PATIENCE = timedelta(days=7)
"""Timeout of collective calls. It is long because ranks encode for unequal times; the launcher detects a process that died."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: this process's rank, from 0.
        count: world size, the number of processes.

    Examples:
        >>> Processes(rank=1, count=4).split([7, 3, 9, 1, 5])
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes the run folder and prints."""
        return self.rank == 0

    def split(self, rows: list[int]) -> list[list[int]]:
        """A batch's rows in order, one share per rank. Sizes differ by at most one, and may be 0."""
        ends = [len(rows) * rank // self.count for rank in range(self.count + 1)]
        return [rows[first:last] for first, last in itertools.pairwise(ends)]

    def owns(self, index: int) -> bool:
        """Whether the work item `index` is this rank's (round-robin)."""
        return index % self.count == self.rank

    def wait(self) -> None:
        """Barrier: return when all ranks have called it."""
        if self.count > 1:
            _state("auto").wait_for_everyone()

    def share(self, value: Any) -> Any:
        """Rank 0's value, on all ranks."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        _state("auto")
        return broadcast_object_list([value])[0]

    def collect(self, value: Any) -> list[Any]:
        """The values of all ranks, on all ranks."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        _state("auto")
        return list(gather_object([value]))

    def device(self, name: str) -> str:
        """The value of `--device` for this rank. Each rank takes its own accelerator of the machine.

        Raises:
            ConfigError: the flag names one device for all ranks, or `spread`.
        """
        if self.count == 1:
            return name
        if ":" in name or name == "spread":
            raise ConfigError(f"--device={name}: {self.count} processes cannot share it; use auto, and each takes its own")
        return str(_state(name).device)

    def leave(self) -> None:
        """Destroy the process group, at the end of a run."""
        if self.count > 1:
            _state("auto").destroy_process_group()

    def wrap(self, model: "nn.Module") -> "nn.Module":
        """The model for training; with several ranks wrapped in DistributedDataParallel, which averages the gradients."""
        if self.count == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        device = next(model.parameters()).device
        # static_graph: every step uses the same weights, but maybe not all of them (attention is unused in a graph without edges)
        return DistributedDataParallel(model, [device] if device.index is not None else None, static_graph=True)


ALONE = Processes()
"""A run with one process."""


def processes() -> Processes:
    """The processes of this run, from the launcher's environment variables RANK and WORLD_SIZE."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return Processes(int(os.environ.get("RANK", "0")), count) if count > 1 else ALONE


_joined: list[Any] = []


def _state(device: str) -> Any:
    """The process group, joined on first use: over gloo on the CPU, over the accelerator's own backend elsewhere."""
    import torch
    from accelerate import PartialState

    if not _joined:
        on_cpu = device == "cpu" or not torch.accelerator.is_available()
        _joined.append(PartialState(cpu=on_cpu, timeout=PATIENCE))
        if _joined[0].num_processes != processes().count:
            raise ConfigError(f"WORLD_SIZE={processes().count}: the processes could not be joined; start them with torchrun")
    return _joined[0]
