"""The tensors of a checkpoint folder, read by name."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from hgsp.models.weight_files import open_weights, weight_files


class SafetensorFiles:
    """Tensors of a checkpoint folder, read by name. A file is mapped only while a tensor is read."""

    def __init__(self, folder: Path) -> None:
        self._file_of: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in weight_files(folder):
            with open_weights(file) as tensors:
                for name in sorted(tensors.keys()):
                    self._file_of[name] = file
                    self.shapes[name] = tuple(tensors.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """Read a tensor in its stored dtype."""
        with open_weights(self._file_of[name]) as tensors:
            return tensors.get_tensor(name)

    def read_first_row(self, name: str) -> Tensor:
        """Read the first row of a matrix, [1, I], without the rest."""
        with open_weights(self._file_of[name]) as tensors:
            return tensors.get_slice(name)[:1]
