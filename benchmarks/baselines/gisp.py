"""GISP: a global ranking by first-order importance, taken again after every few percent (arXiv:2510.18030).

The importance of a group is that of LLM-Pruner, ``sum of |w * dL/dw|`` over its weights, divided by their number, so
that heads and channels compare. One ranking over both kinds and all layers but the first tenth and the last loses a
small fraction of the weights per step, and the gradient is taken anew on what is left: a larger budget continues where
a smaller one ends.

Adapted to GQA: a group is a KV head with its query heads. Steps are larger than the published ones, which remove 0.6%.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from baselines.blocks import zero_columns
from baselines.llm_pruner import group_scores
from baselines.widths import global_plan
from hgsp.data.calibration import Calibration
from hgsp.models.blocks import OUTPUT_PROJECTIONS
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.pruning.surgery import apply_plan

#: Fraction of the decoder that each step removes, at most.
STEP = 0.025
#: Fractions of the layers that are spared at both ends: of 32, the first three and the last one.
FIRST, LAST = 0.1, 1 / 32


def prune(model: Any, calibration: Calibration, budget_params: int, batch_size: int) -> Any:
    """Return the pruned model; consumes the dense one."""
    geometry = geometry_of(model)
    num_layers = geometry.num_layers
    rules = ShapeRules(1, 1, freeze_first=int(FIRST * num_layers), freeze_last=round(LAST * num_layers))
    cost = {"attention": geometry.kv_group_params, "mlp": geometry.mlp_channel_params}
    num_steps = max(1, math.ceil(budget_params / (STEP * geometry.decoder_params)))
    for step in range(1, num_steps + 1):
        scores = [
            {kind: values_G / cost[kind] for kind, values_G in by_kind.items()}
            for by_kind in group_scores(model, calibration, batch_size, strided=False)
        ]
        plan = global_plan(scores, geometry, budget_params * step // num_steps, rules)
        silence(model, plan, geometry)
    return apply_plan(model, plan)


@torch.no_grad()
def silence(model: Any, plan: PrunePlan, geometry: Geometry) -> None:
    """Zero what a plan removes in every output projection: the groups are then worth nothing, and stay removed."""
    for layer, keep in zip(model.model.layers, plan.layers, strict=True):
        for kind, name in OUTPUT_PROJECTIONS.items():
            zero_columns(layer.get_submodule(name), geometry.columns_per_group(kind), keep.groups[kind])
