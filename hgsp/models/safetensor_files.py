"""The tensors of a checkpoint folder, read by name."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from hgsp.models.stored_tensors import stored_tensors
from hgsp.models.weight_checks import refuse_not_finite
from hgsp.models.weight_files import open_weights


class SafetensorFiles:
    """Tensors of a checkpoint folder, read by name. A file is mapped only while a tensor is read."""

    def __init__(self, folder: Path) -> None:
        self._checked = set[str]()
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
        if name not in self._checked:
            refuse_not_finite(str(stored.file), [(name, tensor)])
            self._checked.add(name)
        return tensor

    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self.tensors[name].file

    def read_first_row(self, name: str) -> Tensor:
        """Read the first row of a matrix, [1, I], without the rest."""
        with open_weights(self.tensors[name].file) as tensors:
            return tensors.get_slice(name)[:1]
