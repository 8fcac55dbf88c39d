"""Activations between decoder layers, in memory or on disk.

N sequences | T tokens | H hidden
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor


class Boundaries:
    """Layer-boundary activations, one [N, T, H] array each, in CPU memory or in files of ``spill_dir``."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, spill_dir: Path | None) -> None:
        self._shape, self._dtype = shape, dtype
        self._folder = tempfile.TemporaryDirectory(dir=spill_dir, prefix="hgsp-spill-") if spill_dir else None
        self._arrays: dict[int, Tensor | None] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._arrays

    def open(self, index: int) -> Tensor:
        """The array that enters layer ``index``, allocated on first use. A spilled one is mapped while it is held."""
        array = self._arrays.get(index)
        if array is None and self._folder is None:
            array = self._arrays[index] = torch.empty(self._shape, dtype=self._dtype)
        elif array is None:
            self._arrays[index] = None
            size = math.prod(self._shape)
            array = torch.from_file(str(self._file(index)), shared=True, size=size, dtype=self._dtype).view(self._shape)
        return array

    def drop(self, index: int) -> None:
        if index in self._arrays:
            del self._arrays[index]
            if self._folder is not None:
                self._file(index).unlink()

    def close(self) -> None:
        self._arrays.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def _file(self, index: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"boundary-{index}.bin"
