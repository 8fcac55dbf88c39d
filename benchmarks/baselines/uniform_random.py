"""Uniform widths, groups at random: the control of every way with uniform widths. No source, no text."""

from __future__ import annotations

from typing import Any

import torch

from baselines.widths import uniform_plan
from hgsp.data.calibration import Calibration
from hgsp.models.geometry import geometry_of
from hgsp.pruning.surgery import apply_plan


def prune(model: Any, calibration: Calibration, budget_params: int, batch_size: int) -> Any:
    """The pruned model, the same for the same calibration seed; takes the dense one over."""
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
