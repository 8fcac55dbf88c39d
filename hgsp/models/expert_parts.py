"""Mixtures of experts in checkpoint files: three matrices per expert there, two parameters per layer in the model.

E experts | H hidden | M width of an expert
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from hgsp.models.experts import DOWN, GATE_UP, ROUTER, ExpertNames
from hgsp.models.families import LAYER_PREFIX

if TYPE_CHECKING:
    from hgsp.models.stored_tensors import StoredTensor


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
    if names.stacked:
        return {parameter: StoredPart(parameter) for parameter in shapes}
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


def parameters_of(stored: Iterable[str], names: ExpertNames) -> dict[str, tuple[str, ...]]:
    """Return the parameters of the model that stored tensors are, and the names of their parts in order."""
    matrices = {names.gate: (GATE_UP, 0), names.up: (GATE_UP, 1), names.down: (DOWN, 0)}
    pattern = (
        rf"({re.escape(LAYER_PREFIX)}\d+\.){re.escape(names.block)}\.experts\.(\d+)\.({'|'.join(matrices)})\.weight"
    )
    expert, router = re.compile(pattern), f".{names.block}.gate.weight"
    found: dict[str, list[tuple[int, int, str]]] = {}
    for name in stored:
        if match := expert.fullmatch(name):
            layer, index, matrix = match.groups()
            parameter, half = matrices[matrix]
            found.setdefault(layer + parameter, []).append((int(index), half, name))
        else:
            own = f"{name.removesuffix(router)}.{ROUTER}.weight" if name.endswith(router) else name
            found.setdefault(own, []).append((0, 0, name))
    return {parameter: tuple(name for _, _, name in sorted(parts)) for parameter, parts in found.items()}


def is_fused(parameter: str, parts: tuple[str, ...]) -> bool:
    """Return whether a parameter is made of matrices of experts; some files hold it as it is."""
    return parameter.endswith((f".{GATE_UP}", f".{DOWN}")) and parts != (parameter,)


def fused_tensors(stored: Mapping[str, StoredTensor], names: ExpertNames) -> dict[str, StoredTensor]:
    """Return the parameters of the model that stored tensors are; of no shape or type where parts of one differ."""
    found = {}
    for parameter, parts in parameters_of(stored, names).items():
        first, *others = (stored[name] for name in parts)
        if is_fused(parameter, parts):
            alike = all(other.shape == first.shape for other in others) and len(first.shape) == 2
            halves = 2 if parameter.endswith(GATE_UP) else 1
            shape = (len(parts) // halves, halves * first.shape[0], first.shape[1]) if alike else ()
            dtype = first.dtype if all(other.dtype == first.dtype for other in others) else None
            first = replace(first, shape=shape, dtype=dtype)
        found[parameter] = first
    return found
