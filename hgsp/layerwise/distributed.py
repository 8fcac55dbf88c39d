"""Calibration sequences split over the processes of ``torchrun`` or ``accelerate launch``, and sums over them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Share:
    """A process's contiguous share of the calibration sequences."""

    rank: int
    num_processes: int
    num_sequences: int

    @property
    def rows(self) -> slice:
        bounds = [self.num_sequences * rank // self.num_processes for rank in (self.rank, self.rank + 1)]
        return slice(*bounds)


def launched_processes() -> int:
    """How many processes the launcher started, this one included, whether they have joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: str, timeout: timedelta | None = None) -> None:
    """Join the group that the launcher's environment describes; nothing to do without one.

    ``timeout`` is how long a process may wait for the others before the run is given up; unset: torch's minutes.
    """
    if launched_processes() > 1 and not dist.is_initialized():
        # some sums live on the CPU even when the model does not
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=timeout)


def leave_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def own_share(num_sequences: int) -> Share:
    """Return this process's share; all sequences without other processes."""
    if not dist.is_initialized():
        return Share(0, 1, num_sequences)
    return Share(dist.get_rank(), dist.get_world_size(), num_sequences)


def is_main_process() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place, and return it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
