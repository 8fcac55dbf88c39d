"""The tensors of a checkpoint folder, read by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from hgsp.models.stored_tensors import stored_tensors
from hgsp.models.weight_checks import refuse_not_finite
from hgsp.models.weight_files import open_weights


class SafetensorFiles:
    """Tensors of a checkpoint folder, read by name. A file is mapped only while a tensor is read."""

    def __init__(self, folder: Path) -> None:
        self._checked = set[Any]()
        self.tensors = stored_tensors(folder)
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        """Read a tensor in its stored dtype.

        Raises:
            InputError: a type that is not floating-point, or a value that is NaN or infinite.
        """
        stored = self.tensors[name]
        stored.check_type(name)
        with open_weights(stored.file) as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        return self._checked_once(tensor, name)

    def read_rows(self, name: str, rows: range) -> Tensor:
        """Read some rows of a matrix in its stored dtype.

        Raises:
            InputError: as ``read``.
        """
        stored = self.tensors[name]
        stored.check_type(name)
        with open_weights(stored.file) as tensors:
            return self._checked_once(tensors.get_slice(name)[rows.start : rows.stop], name, rows)

    def _checked_once(self, tensor: Tensor, *part: Any) -> Tensor:
        """Return a tensor, or rows of one, after a check of its values when it is read for the first time."""
        if part not in self._checked:
            refuse_not_finite(str(self.tensors[part[0]].file), [(part[0], tensor)])
            self._checked.add(part)
        return tensor

    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self.tensors[name].file

    def read_first_row(self, name: str) -> Tensor:
        """Read the first row of a matrix, [1, I], without the rest."""
        with open_weights(self.tensors[name].file) as tensors:
            return tensors.get_slice(name)[:1]
