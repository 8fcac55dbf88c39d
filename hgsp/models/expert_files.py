"""Reading the parameters of mixtures of experts from checkpoint files, and their parts from parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from hgsp.models.expert_parts import StoredPart, fused_tensors, is_fused, parameters_of
from hgsp.models.experts import GATE_UP, ExpertNames
from hgsp.models.safetensor_files import SafetensorFiles


class PartReader:
    """Reads stored parts, with the last parameter in memory: the parts of one parameter come one after another."""

    def __init__(self, parts: Mapping[str, StoredPart], read: Callable[[str], Tensor]) -> None:
        self._parts, self._read = parts, read
        self._last: tuple[str, Tensor] | None = None

    def __call__(self, name: str) -> Tensor:
        """Return a stored tensor, of an expert a copy."""
        part = self._parts[name]
        if part.expert is None:
            return self._read(part.parameter)
        if self._last is None or self._last[0] != part.parameter:
            self._last = None  # freed before the next one is read
            self._last = part.parameter, self._read(part.parameter)
        return part.of(self._last[1]).clone()


class ExpertFiles(SafetensorFiles):
    """The tensors of a checkpoint folder by their names in the model: those of a layer's experts as one tensor."""

    def __init__(self, folder: Path, names: ExpertNames) -> None:
        super().__init__(folder)
        self._parts = parameters_of(self.tensors, names)
        self.shapes = {name: tensor.shape for name, tensor in fused_tensors(self.tensors, names).items()}

    def read(self, name: str) -> Tensor:
        """Read a tensor in its stored dtype; of experts, one matrix at a time into one tensor.

        Raises:
            InputError: as of the base class.
        """
        parts = self._parts[name]
        first = super().read(parts[0])
        if not is_fused(name, parts):
            return first
        fused = first.new_empty((len(parts), *first.shape))
        for place, part in enumerate(parts):
            fused[place] = super().read(part)
        return fused.flatten(0, 1).unflatten(0, (-1, 2 * len(first) if name.endswith(GATE_UP) else len(first)))

    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor, or its first part."""
        return super().file_of(self._parts[name][0])

    def read_first_row(self, name: str) -> Tensor:
        """Read the first row of a matrix, or of the first expert's, [1, I]."""
        parts = self._parts[name]
        first = super().read_first_row(parts[0])
        return first if is_fused(name, parts) or first.ndim == 2 else first[0, :1]
