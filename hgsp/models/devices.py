"""The device to run on, and its free memory."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from hgsp.console.nearest import did_you_mean
from hgsp.environment import launched_processes, local_rank
from hgsp.errors import InputError


def resolve_device(device: str | None) -> str:
    """Return the requested device, by default the best one available; under a launcher, this process's own GPU.

    Raises:
        InputError: the device does not exist; ``auto`` without accelerate or with several processes.
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
                expected="accelerate, which spreads a model over devices",
                got="no such package",
                remedy="pip install accelerate",
            )
        return device
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        found = devices_found()
        raise InputError(
            expected=f"--device to be one of {', '.join(found)} or auto, the devices found here",
            got=f"'{device}'",
            remedy=did_you_mean(device, found, "leave --device out to use the best one available"),
        ) from error
    return device


def devices_found() -> list[str]:
    """Return the devices of this machine that PyTorch can use."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *["mps"] * torch.backends.mps.is_available()]


def bf16_warnings(device: str, dtype: str) -> list[str]:
    """Warn of bfloat16 on a GPU without instructions for it, which emulates it slowly."""
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if dtype != "bfloat16" or not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False):
        return []
    name = torch.cuda.get_device_name(None if device == "auto" else device)
    return [f"{name} has no bfloat16 hardware and emulates it slowly: --dtype float16 is faster, float32 is safe"]


def free_bytes(device: torch.device) -> int:
    """Return the free bytes of a GPU, without those that PyTorch's allocator reserves; 0 for other devices."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
