"""Calibration sequences split over the processes of ``torchrun`` or ``accelerate launch``, and sums over them."""

from __future__ import annotations

from dataclasses import dataclass

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


def own_share(num_sequences: int) -> Share:
    """Return this process's share; all sequences without other processes."""
    if not dist.is_initialized():
        return Share(0, 1, num_sequences)
    return Share(dist.get_rank(), dist.get_world_size(), num_sequences)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place, and return it."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor
