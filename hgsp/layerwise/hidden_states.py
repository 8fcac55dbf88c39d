"""A cache of the hidden states between decoder layers: on the device of the weights, in main memory or on disk.

N sequences | T tokens | H hidden
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from hgsp.console.scratch import ScratchFolder
from hgsp.environment import reserve_space
from hgsp.models.devices import free_bytes


class HiddenStateCache:
    """Hidden states [N, T, H] by the index of the layer that they enter.

    In memory they are on ``device`` while they take at most a quarter of its memory that was free at first, so that no
    layer's activations are copied to main memory and back; the others are in main memory.

    Args:
        device: of the weights.
        spill_dir: folder for temporary files; None keeps the hidden states in memory.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, spill_dir: Path | None, device: torch.device
    ) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device
        self._num_bytes = math.prod(shape) * dtype.itemsize
        self._room = free_bytes(device) // 4
        self._folder = None if spill_dir is None else ScratchFolder(spill_dir)
        self._arrays: dict[int, Tensor | None] = {}

    def __contains__(self, index: int) -> bool:
        return index in self._arrays

    def open(self, index: int) -> Tensor:
        """Return the array [N, T, H] that enters a layer, allocated on first use and mapped if on disk."""
        array = self._arrays.get(index)
        if array is None and self._folder is None:
            array = self._arrays[index] = torch.empty(self._shape, dtype=self._dtype, device=self._place())
        elif array is None:
            self._arrays[index] = None
            size = math.prod(self._shape)
            if not self._file(index).exists():
                reserve_space(self._file(index), self._num_bytes)
            array = torch.from_file(str(self._file(index)), shared=True, size=size, dtype=self._dtype).view(self._shape)
        return array

    def drop(self, index: int) -> None:
        """Free the array that enters a layer, if there is one."""
        if index in self._arrays:
            array = self._arrays.pop(index)
            if self._folder is not None:
                self._file(index).unlink()
            elif array is not None and not array.is_cpu:
                self._room += self._num_bytes

    def close(self) -> None:
        """Free all arrays and remove the files."""
        self._arrays.clear()
        if self._folder is not None:
            self._folder.close()

    def _place(self) -> torch.device:
        if self._num_bytes > self._room:
            return torch.device("cpu")
        self._room -= self._num_bytes
        return self._device

    def _file(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder.path / f"boundary-{index}.bin"
