"""Which device to use: the one asked for, or the best there is; and what is free there."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from hgsp.environment import launched_processes, local_rank
from hgsp.errors import InputError


def resolve_device(device: str | None) -> str:
    """The device asked for, or the best there is; under a launcher, this process's own GPU.

    Raises:
        InputError: no such device here; ``auto`` without accelerate or with several processes.
    """
    if device is None:
        if torch.cuda.is_available():
            return f"cuda:{local_rank()}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "auto":
        if launched_processes() > 1:
            raise InputError(
                expected="one process with --device auto", got="several", remedy="leave --device out under a launcher"
            )
        if find_spec("accelerate") is None:
            raise InputError(
                expected="accelerate, which spreads a model over devices", got="none", remedy="pip install accelerate"
            )
        return device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise InputError(
            expected=f"--device to be one of {', '.join(['cpu', *found])} or auto",
            got=f"'{device}' ({str(error).splitlines()[0]})",
            remedy="leave --device out to take the best there is",
        ) from error
    return device


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nothing holds, what PyTorch keeps in reserve there not counted; 0 elsewhere."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
