"""Uniform widths, random groups: the control for every setting with uniform widths. Needs no text."""

from __future__ import annotations

from typing import Any

import torch

from baselines.widths import uniform_plan
from hgsp.data.calibration import Calibration
from hgsp.models.geometry import geometry_of
from hgsp.pruning.surgery import apply_plan


def prune(model: Any, calibration: Calibration, budget_params: int, batch_size: int) -> Any:
    """Return the pruned model, determined by the calibration seed; consumes the dense one."""
    geometry = geometry_of(model)
    generator = torch.Generator().manual_seed(calibration.seed)
    scores = [
        {
            "attention": torch.rand(shape.num_kv_groups, generator=generator),
            "mlp": torch.rand(shape.mlp_width, generator=generator),
        }
        for shape in geometry.shapes
    ]
    return apply_plan(model, uniform_plan(scores, geometry, budget_params))
