"""The identity of a model by content: hashes of all its weights or files, whatever their path and time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hgsp.environment import file_sha256
from hgsp.models.weight_checks import refuse_not_finite


@dataclass(frozen=True)
class WeightsIdentity:
    """SHA-256 of all weights by name: in the dtype they are used in, and rounded to bfloat16 and to float16.

    A rounded one is the same for two uses of one model if at least one of them is in the dtype that it is stored in,
    or in float32.
    """

    sha256: str
    bfloat16_sha256: str
    float16_sha256: str

    def is_of(self, recorded: Mapping[str, str], recorded_dtype: str, dtype: str) -> bool:
        """Return whether these are weights of the model whose identity was recorded, as a dict, in another run."""
        if recorded_dtype == dtype:
            return recorded["sha256"] == self.sha256
        return self.bfloat16_sha256 == recorded["bfloat16_sha256"] or self.float16_sha256 == recorded.get(
            "float16_sha256"
        )


def weights_identity(names: Iterable[str], read: Callable[[str], Tensor]) -> WeightsIdentity:
    """Hash weights in the order of their names; ``read(name)`` returns one of them.

    Raises:
        InputError: a weight is NaN or infinite, which no method would notice that does not compute with it.
    """
    exact, *rounded = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for name in sorted(names):
        weight = read(name).detach().cpu()
        refuse_not_finite("the dtype that they are used in", [(name, weight)])
        header = f"{name} {list(weight.shape)} ".encode()
        exact.update(header + str(weight.dtype).encode())
        exact.update(_bytes_of(weight))
        for digest, dtype in zip(rounded, (torch.bfloat16, torch.float16), strict=True):
            digest.update(header)
            digest.update(_bytes_of(weight.to(dtype)))
    return WeightsIdentity(exact.hexdigest(), *(digest.hexdigest() for digest in rounded))


#: Files that decide what a model computes, beside its weights.
_BESIDE_WEIGHTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "*.model")


def files_sha256(path: Path) -> str:
    """Return one SHA-256 of a model's file, or of the weights, config and tokenizer in its folder; seconds per GB.

    A ``.bin`` beside safetensors is a second copy of the weights and does not count.
    """
    if not path.is_dir():
        return file_sha256(path)
    weights = next((found for kind in ("safetensors", "bin", "gguf") if (found := [*path.glob(f"*.{kind}")])), [])
    beside = [file for pattern in _BESIDE_WEIGHTS for file in path.glob(pattern)]
    hashes = [f"{file.name} {file_sha256(file)}" for file in sorted({*weights, *beside}) if file.is_file()]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _bytes_of(weight: Tensor) -> memoryview:
    return memoryview(weight.contiguous().flatten().view(torch.uint8).numpy().data)
