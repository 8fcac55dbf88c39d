"""Checkpoint files of mixtures of experts: three matrices per expert, two parameters per layer in the model.

E experts | H hidden | M width of an expert
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hgsp.models.experts import DOWN, GATE_UP, ROUTER, ExpertNames
from hgsp.models.families import LAYER_PREFIX
from hgsp.models.safetensor_files import SafetensorFiles


@dataclass(frozen=True)
class StoredPart:
    """A tensor of a file: a parameter of the model, or of one expert its matrix ``half`` of ``halves``."""

    parameter: str
    expert: int | None = None
    half: int = 0
    halves: int = 1

    def of(self, tensor: Tensor) -> Tensor:
        """Return this part of the parameter, a view."""
        return tensor if self.expert is None else tensor[self.expert].chunk(self.halves)[self.half]


def stored_parts(shapes: Mapping[str, Tensor], names: ExpertNames) -> dict[str, StoredPart]:
    """Return the parts that files store the parameters of a model as, by their names there.

    Args:
        shapes: parameters by name; only the number of experts is read.
    """
    found: dict[str, StoredPart] = {}
    for parameter, tensor in shapes.items():
        layer, experts = parameter.removesuffix(GATE_UP), f"{names.block}.experts"
        if parameter.endswith(f".{GATE_UP}"):
            for index in range(len(tensor)):
                found[f"{layer}{experts}.{index}.{names.gate}.weight"] = StoredPart(parameter, index, 0, 2)
                found[f"{layer}{experts}.{index}.{names.up}.weight"] = StoredPart(parameter, index, 1, 2)
        elif parameter.endswith(f".{DOWN}"):
            layer = parameter.removesuffix(DOWN)
            for index in range(len(tensor)):
                found[f"{layer}{experts}.{index}.{names.down}.weight"] = StoredPart(parameter, index)
        elif parameter.endswith(f".{ROUTER}.weight"):
            found[parameter.replace(f".{ROUTER}.", f".{names.block}.gate.")] = StoredPart(parameter)
        else:
            found[parameter] = StoredPart(parameter)
    return found


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
        self._stored: dict[str, list[tuple[int, int, str]]] = {}
        self._renamed: dict[str, str] = {}
        block, matrices = (
            re.escape(names.block),
            {names.gate: (GATE_UP, 0), names.up: (GATE_UP, 1), names.down: (DOWN, 0)},
        )
        expert = re.compile(rf"({re.escape(LAYER_PREFIX)}\d+\.){block}\.experts\.(\d+)\.(\w+)\.weight")
        for stored in list(self.shapes):
            if match := expert.fullmatch(stored):
                layer, index, matrix = match.groups()
                if matrix in matrices:
                    parameter, half = matrices[matrix]
                    self._stored.setdefault(layer + parameter, []).append((int(index), half, stored))
            elif stored.endswith(f".{names.block}.gate.weight"):
                self._renamed[stored.replace(f".{names.block}.gate.", f".{ROUTER}.")] = stored
        self._replace_shapes()

    def _replace_shapes(self) -> None:
        for name, parts in self._stored.items():
            parts.sort()
            rows, columns = self.shapes[parts[0][2]]
            halves = 1 + max(half for _, half, _ in parts)
            shape = (len(parts) // halves, halves * rows, columns)
            for _, _, stored in parts:
                del self.shapes[stored]
            self.shapes[name] = shape
        for name, stored in self._renamed.items():
            self.shapes[name] = self.shapes.pop(stored)

    def read(self, name: str) -> Tensor:
        """Read a tensor in its stored dtype; of experts, one matrix at a time into one tensor."""
        if name not in self._stored:
            return super().read(self._renamed.get(name, name))
        parts, shape = self._stored[name], self.shapes[name]
        first = super().read(parts[0][2])
        fused = first.new_empty((len(parts), *first.shape))
        for place, (_, _, stored) in enumerate(parts):
            fused[place] = super().read(stored)
        return fused.view(shape)

    def read_first_row(self, name: str) -> Tensor:
        """Read the first row of a matrix, or of the first expert's, [1, I]."""
        stored = self._stored[name][0][2] if name in self._stored else self._renamed.get(name, name)
        return super().read_first_row(stored)
