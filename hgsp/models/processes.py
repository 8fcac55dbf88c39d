"""Processes started by ``torchrun`` or ``accelerate launch``; with one process everything here is a no-op.

Plain ``torch.distributed``: ``accelerate.PartialState`` cannot leave the group and go on alone, takes its device from
the environment instead of ``--device``, and would make accelerate a requirement of scoring.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist

from hgsp.environment import launched_processes, local_rank
from hgsp.models.devices import resolve_device

Value = TypeVar("Value")

#: How long processes wait for one that evaluates or caches teacher logits alone.
WAIT_FOR_MAIN = timedelta(weeks=1)


def join_processes(device: str, timeout: timedelta | None = None) -> None:
    """Join the process group of the launcher. ``timeout`` limits every later wait; None = torch's default."""
    if launched_processes() > 1 and not dist.is_initialized():
        # gloo beside nccl: some sums are of CPU tensors even when the model is on a GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=timeout)


def join_with_own_device(device: str | None) -> str:
    """Join the process group and return this process's device: its own GPU under a launcher.

    Raises:
        InputError: as ``resolve_device``.
    """
    own = resolve_device(device)
    if launched_processes() > 1 and own.startswith("cuda"):
        own = f"cuda:{local_rank()}"
        torch.cuda.set_device(own)
    join_processes(own, WAIT_FOR_MAIN)
    return own


def leave_processes() -> None:
    """Leave the process group; from here on this process works alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Return whether this process has joined a group."""
    return dist.is_initialized()


def is_main_process() -> bool:
    """Return whether this process writes the results."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait_for_all() -> None:
    """Block until every process of the group gets here."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_processes(count: int) -> int:
    """Return the sum of a count over the processes of the group."""
    if not dist.is_initialized():
        return count
    counts = [0] * dist.get_world_size()
    dist.all_gather_object(counts, count)
    return sum(counts)


def broadcast_from_main(value: Value) -> Value:
    """Return the main process's (picklable) value in every process."""
    if not dist.is_initialized():
        return value
    shared = [value]
    dist.broadcast_object_list(shared, src=0)
    return shared[0]
