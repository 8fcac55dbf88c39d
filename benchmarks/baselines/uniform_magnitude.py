"""Uniform widths by magnitude: the same fraction of every layer leaves, in each block the groups of smallest weights.

``S(group) = sum of |w|`` over every weight and bias that leaves with it (Han et al., arXiv:1506.02626, for groups). It
needs no text. Left open for GQA: a KV group is its key and value head and all its query heads.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from baselines.llm_pruner import fold
from baselines.widths import uniform_plan
from hgsp.data.calibration import Calibration
from hgsp.models.families import LINEARS
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.pruning.surgery import apply_plan


def prune(model: Any, calibration: Calibration, budget_params: int, batch_size: int) -> Any:
    """The pruned model; takes the dense one over."""
    geometry = geometry_of(model)
    scores = [group_scores(layer, geometry) for layer in model.model.layers]
    return apply_plan(model, uniform_plan(scores, geometry, budget_params))


def group_scores(layer: Any, geometry: Geometry) -> dict[str, Tensor]:
    """Sum of |w| of every group of a layer, float64."""
    magnitudes = {
        name.removesuffix(".weight"): parameter.detach().double().abs().cpu()
        for name, parameter in layer.named_parameters()
        if name.rpartition(".")[0] in LINEARS
    }
    return fold(magnitudes, geometry, strided=False)
