"""The identity of a model: hashes of all its weights, whatever its path."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hgsp.models.weight_checks import refuse_not_finite


@dataclass(frozen=True)
class WeightsIdentity:
    """SHA-256 of all weights by name, in the dtype they are used in and rounded to bfloat16.

    The second one is the same for float32 and bfloat16 copies of one model.
    """

    sha256: str
    bfloat16_sha256: str


def weights_identity(names: Iterable[str], read: Callable[[str], Tensor]) -> WeightsIdentity:
    """Hash weights in the order of their names; ``read(name)`` returns one of them.

    Raises:
        InputError: a weight is NaN or infinite, which no method would notice that does not compute with it.
    """
    exact, rounded = hashlib.sha256(), hashlib.sha256()
    for name in sorted(names):
        weight = read(name).detach().cpu()
        refuse_not_finite("the dtype that they are used in", [(name, weight)])
        header = f"{name} {list(weight.shape)} ".encode()
        exact.update(header + str(weight.dtype).encode())
        exact.update(_bytes_of(weight))
        rounded.update(header)
        rounded.update(_bytes_of(weight.to(torch.bfloat16)))
    return WeightsIdentity(exact.hexdigest(), rounded.hexdigest())


def _bytes_of(weight: Tensor) -> memoryview:
    return memoryview(weight.contiguous().flatten().view(torch.uint8).numpy().data)
