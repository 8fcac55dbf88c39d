"""The tensors of a checkpoint with experts in MXFP4, de-quantised one expert at a time as they are read."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from hgsp.models.expert_files import ExpertFiles
from hgsp.models.experts import ExpertNames
from hgsp.models.mxfp4 import BLOCKS, SCALES, dequantised_tensors, quantised_names
from hgsp.models.weight_files import open_weights


class Mxfp4Files(ExpertFiles):
    """The tensors of a checkpoint folder by their names in the model, experts in bfloat16."""

    def __init__(self, folder: Path, names: ExpertNames) -> None:
        super().__init__(folder, names)
        self._quantised = quantised_names(self.tensors)
        self.shapes = {name: tensor.shape for name, tensor in dequantised_tensors(self.tensors).items()}

    def read(self, name: str) -> Tensor:
        """Read a tensor in its stored dtype, a quantised one in bfloat16, which holds every value of MXFP4.

        Raises:
            InputError: as of the base class.
        """
        if name not in self._quantised:
            return super().read(name)
        num_experts, *shape = self.shapes[name]
        first = self._expert(name, 0)
        weight = first.new_empty((num_experts, *shape))
        weight[0] = first
        for index in range(1, num_experts):
            weight[index] = self._expert(name, index)
        return weight

    def _expert(self, name: str, index: int) -> Tensor:
        """Return the matrix of one expert, [I, O]."""
        parts = []
        for part in (name + BLOCKS, name + SCALES):
            with open_weights(self.tensors[part].file) as tensors:
                parts.append(tensors.get_slice(part)[index : index + 1])
        return self._checked_once(convert_moe_packed_tensors(*parts)[0], name + BLOCKS, index)

    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor, or its blocks."""
        return self.tensors[name + BLOCKS].file if name in self._quantised else super().file_of(name)

    def read_first_row(self, name: str) -> Tensor:
        """Read the first row of a matrix, or of the first expert's, [1, I]."""
        return self._expert(name, 0)[:1] if name in self._quantised else super().read_first_row(name)
