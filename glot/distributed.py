"""Several processes that work on one run, as `torchrun` or `accelerate launch` starts them; without those, one process alone.

The only door to accelerate. A collective call must be reached by every process, in the same order.
"""

import itertools
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from glot.errors import ConfigError

if TYPE_CHECKING:  # a command line that is refused loads nothing heavy
    from torch import nn

PATIENCE = timedelta(days=7)
"""How long processes wait for each other: encoding takes them unequal times. A process that died is noticed by the launcher."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: number of this one, from 0.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes the run folder and speaks."""
        return self.rank == 0

    def split(self, rows: list[int]) -> list[list[int]]:
        """A batch's rows in order, a share for each process; sizes differ by one at most, and may be 0."""
        ends = [len(rows) * rank // self.count for rank in range(self.count + 1)]
        return [rows[first:last] for first, last in itertools.pairwise(ends)]

    def owns(self, index: int) -> bool:
        """Whether a numbered piece of work is this process's."""
        return index % self.count == self.rank

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            _state("auto").wait_for_everyone()

    def device(self, name: str) -> str:
        """`--device` for this process: of several accelerators on a machine each process takes its own.

        Raises:
            ConfigError: all are told to take the same one.
        """
        if self.count == 1:
            return name
        if ":" in name or name == "spread":
            raise ConfigError(f"--device={name}: {self.count} processes cannot share it; use auto, and each takes its own")
        return str(_state(name).device)

    def leave(self) -> None:
        """Say good-bye to the others, at the end."""
        if self.count > 1:
            _state("auto").destroy_process_group()

    def wrap(self, model: "nn.Module") -> "nn.Module":
        """The model for training: gradients are averaged over the processes (DistributedDataParallel)."""
        if self.count == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        device = next(model.parameters()).device
        # static: the same weights take part in every step, though perhaps not all: attention has no part in a graph without edges
        return DistributedDataParallel(model, [device] if device.index is not None else None, static_graph=True)


ALONE = Processes()
"""One process that does everything itself."""


def processes() -> Processes:
    """The processes of this run, by the environment that their launcher made."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return Processes(int(os.environ.get("RANK", "0")), count) if count > 1 else ALONE


_joined: list[Any] = []


def _state(device: str) -> Any:
    """The process group, joined on first use: over gloo on the CPU, over the accelerators' own library elsewhere."""
    import torch
    from accelerate import PartialState

    if not _joined:
        on_cpu = device == "cpu" or not torch.accelerator.is_available()
        _joined.append(PartialState(cpu=on_cpu, timeout=PATIENCE))
        if _joined[0].num_processes != processes().count:
            raise ConfigError(f"WORLD_SIZE={processes().count}: the processes could not be joined; start them with torchrun")
    return _joined[0]
