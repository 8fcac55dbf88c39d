"""A model's folder as ``hgsp verify`` reads it: config, weights, plan and reports, each when it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgsp.console.report_schema import PRUNING_REPORT, RECOVERY_REPORT
from hgsp.models.configs import MODEL_TYPES, ModelDescription, describe, read_object
from hgsp.models.families import LAYER_PREFIX
from hgsp.models.kinds import GROUP_KINDS
from hgsp.models.model_files import files_of
from hgsp.models.safetensor_files import SafetensorFiles
from hgsp.models.stored_tensors import refuse_other_tensors
from hgsp.pipeline.recovery_report import read_pruning_report
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.surgery import surviving_layers

CONFIG, PLAN = "config.json", "prune_plan.json"


class DifferenceError(Exception):
    """A file, tensor or value that is not what it must be."""


class NotAppliedError(Exception):
    """The reason why a check does not apply to a folder."""


@dataclass(frozen=True)
class VerifiedFolder:
    """The folder of a model, dense, pruned, recovered or exported."""

    path: Path

    @cached_property
    def report(self) -> Mapping[str, Any]:
        """The content of ``pruning_analysis.json``; empty without one."""
        return read_pruning_report(str(self.path))

    @property
    def is_recovered(self) -> bool:
        return (self.path / RECOVERY_REPORT).is_file()

    @cached_property
    def files(self) -> SafetensorFiles:
        return files_of(self.path, self.model.skeleton)

    @cached_property
    def model(self) -> ModelDescription:
        """The model that ``config.json`` describes, without weights.

        Raises:
            InputError: a config that cannot become a model.
            NotAppliedError: no config, or one of another engine.
        """
        file = self.path / CONFIG
        if not file.is_file():
            raise NotAppliedError(f"no {CONFIG}")
        model_type = read_object(file).get("model_type")
        if model_type not in MODEL_TYPES and not self.report:
            raise NotAppliedError(f"a model of type {model_type}, the format of another engine")
        return describe(self.path)

    @cached_property
    def names(self) -> list[str]:
        """The names of the stored tensors, which are those that ``config.json`` describes.

        Raises:
            InputError: tensors that are missing, of another shape, or without a place in the model.
        """
        return refuse_other_tensors(self.path, self.model.skeleton, self.files.tensors)

    @property
    def num_params(self) -> int:
        return sum(parameter.numel() for parameter in self.model.skeleton.parameters())

    @cached_property
    def plan(self) -> PrunePlan:
        """The plan of ``prune_plan.json``, else that of the report, which recovered models keep.

        Raises:
            NotAppliedError: there is neither.
        """
        if (self.path / PLAN).is_file():
            return PrunePlan.read_json(self.path / PLAN)
        if not self.report:
            raise NotAppliedError(f"neither {PLAN} nor {PRUNING_REPORT}")
        removed = self.report["params_before"] - self.report["params_after"]
        return PrunePlan(tuple(self.reported_layers()), removed, removed)

    def reported_layers(self) -> Iterator[LayerKeep]:
        """Yield the groups that every dense layer keeps, as the report has them."""
        for layer in self.report["layers"]:
            kept = (tuple(layer.get(f"kept_{kind.kept}", ())) for kind in GROUP_KINDS)
            yield LayerKeep(*kept, linear_attention=layer.get("kept_linear_attention", False))

    def refitted(self) -> tuple[str, ...]:
        """Return the beginnings of the names of all tensors that a reconstruction changed."""
        found = self.report.get("reconstruction")
        if not found:
            return ()
        part = "bias" if found["method"] == "bias" else ""
        new_index = {old: new for new, old in enumerate(surviving_layers(self.plan))}
        changed = [module for module in found["modules"] if module["changed"]]
        return tuple(f"{LAYER_PREFIX}{new_index[module['layer']]}.{module['module']}.{part}" for module in changed)

    def compare(self, name: str, expected: Tensor, source: str) -> None:
        """Compare a stored tensor bit by bit with the one that ``source``, in words, says it must be.

        Raises:
            DifferenceError: another shape, dtype or value, with the place of the first.
        """
        found = self.files.read(name)
        place = f"{self.files.file_of(name).name}: {name}"
        for property_name in ("shape", "dtype"):
            ours, theirs = getattr(found, property_name), getattr(expected, property_name)
            if ours != theirs:
                raise DifferenceError(f"{place} has {property_name} {ours}, and {theirs} in {source}")
        index = first_different(found, expected)
        if index is not None:
            values = f"{found[index].item():.9g}, and {expected[index].item():.9g}"
            raise DifferenceError(f"{place}{list(index)} is {values} in {source}")


def first_different(found: Tensor, expected: Tensor) -> tuple[int, ...] | None:
    """Return the index of the first element whose bits differ, None without one; shapes and dtypes are equal."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[found.itemsize]
    different = found.contiguous().view(bits).flatten() != expected.cpu().contiguous().view(bits).flatten()
    if not different.any():
        return None
    position = int(different.to(torch.uint8).argmax())
    return tuple(int(index) for index in torch.unravel_index(torch.tensor(position), found.shape))
