"""The tensors of a checkpoint whose layers fuse projections, read by their names in our class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hgsp.models.fusion import rows_of_parts, stored_wholes
from hgsp.models.safetensor_files import SafetensorFiles


class FusedFiles(SafetensorFiles):
    """The tensors of a checkpoint folder by their names in the model: a projection is some rows of a stored matrix."""

    def __init__(self, folder: Path, skeleton: Any) -> None:
        super().__init__(folder)
        own = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
        wholes = stored_wholes(skeleton, self.tensors)
        self._rows = rows_of_parts(wholes, own)
        kept = {name: shape for name, shape in self.shapes.items() if name not in wholes}
        self.shapes = kept | {part: own[part] for part in self._rows}

    def read(self, name: str) -> Tensor:
        """Read a tensor in its stored dtype, of a fused matrix these rows alone.

        Raises:
            InputError: as of the base class.
        """
        if name not in self._rows:
            return super().read(name)
        return self.read_rows(*self._rows[name])

    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor, or the matrix that it is a part of."""
        return super().file_of(self._rows[name][0] if name in self._rows else name)

    def read_first_row(self, name: str) -> Tensor:
        """Read the first row of a matrix, [1, I], without the rest."""
        if name not in self._rows:
            return super().read_first_row(name)
        whole, rows = self._rows[name]
        return self.read_rows(whole, rows[:1])
