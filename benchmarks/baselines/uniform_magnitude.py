"""Uniform widths by magnitude: every layer loses the same fraction, each block its groups of smallest weights.

``S(group) = sum of |w|`` over every weight and bias removed with it (arXiv:1506.02626, applied to groups). Needs no
text. Adapted to GQA: a KV group is its key and value head and all its query heads.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from baselines.llm_pruner import fold
from baselines.widths import uniform_plan
from hgsp.data.calibration import Calibration
from hgsp.models.blocks import LINEARS
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.pruning.surgery import apply_plan


def prune(model: Any, calibration: Calibration, budget_params: int, batch_size: int) -> Any:
    """Return the pruned model; consumes the dense one."""
    geometry = geometry_of(model)
    scores = [group_scores(layer, geometry) for layer in model.model.layers]
    return apply_plan(model, uniform_plan(scores, geometry, budget_params))


def group_scores(layer: Any, geometry: Geometry) -> dict[str, Tensor]:
    """Return the sum of |w| of every group of a layer, float64: ``{"attention": [K], "mlp": [M]}``."""
    magnitudes = {
        name.removesuffix(".weight"): parameter.detach().double().abs().cpu()
        for name, parameter in layer.named_parameters()
        if name.rpartition(".")[0] in LINEARS
    }
    return fold(magnitudes, geometry, strided=False)
