"""FLAP (arXiv:2312.11983): remove the columns whose inputs fluctuate least, and add a bias for their mean output.

``S_j = Var_t(x_j) * ||W_:j||^2`` over the columns of ``o_proj`` and ``down_proj``, standardised to mean 0 and deviation
1 per module and ranked over all layers and both kinds. Then ``b = W_P mean_t(x_P)``, P the removed columns, is added to
the module's output. All statistics are those of the dense model.

Adapted to GQA: z-scores are taken over columns, as published, and a KV group has the mean of its R*D columns; a group
costs its own parameters, including its key and value head, and added biases count against the budget. Every block keeps
at least one group. The biases exist in memory only, as stock configs cannot describe them.

I inputs of an output projection | H hidden
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from baselines.blocks import Block, walk_blocks
from baselines.widths import Scores, global_plan
from hgsp.data.calibration import Calibration
from hgsp.models.blocks import OUTPUT_PROJECTIONS
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.pruning.surgery import apply_plan


def prune(model: Any, calibration: Calibration, budget_params: int, batch_size: int) -> Any:
    """Return the pruned model, with a bias in every output projection that lost columns; consumes the dense one."""
    geometry = geometry_of(model)
    means: dict[tuple[int, str], Tensor] = {}
    scores: list[dict[str, Tensor]] = [{} for _ in geometry.shapes]
    for block in walk_blocks(model, calibration.input_ids, batch_size):
        means[block.index, block.kind], variance_I = mean_and_variance(block)
        columns = geometry.columns_per_group(block.kind)
        scores[block.index][block.kind] = group_scores(block.projection.weight, variance_I, columns)
    has_bias = {
        kind: model.model.layers[0].get_submodule(name).bias is not None for kind, name in OUTPUT_PROJECTIONS.items()
    }
    plan = plan_including_biases(scores, geometry, budget_params, has_bias)
    biases = {
        (index, kind): _compensated_bias(model.model.layers[index], kind, means[index, kind], keep, geometry)
        for index, keep in enumerate(plan.layers)
        for kind in _pruned_kinds(keep, index, geometry)
    }
    pruned = apply_plan(model, plan)
    for (index, kind), bias_H in biases.items():
        projection = pruned.model.layers[index].get_submodule(OUTPUT_PROJECTIONS[kind])
        projection.bias = nn.Parameter(bias_H.to(projection.weight), requires_grad=False)
    return pruned


def mean_and_variance(block: Block) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of a projection's inputs over all calibration tokens, float64 [I] each."""
    count, total_I, total_sq_I = 0, torch.zeros(()), torch.zeros(())
    for input_TI in block.inputs():
        input_TI = input_TI.double().cpu()
        count += len(input_TI)
        total_I, total_sq_I = total_I + input_TI.sum(0), total_sq_I + input_TI.square().sum(0)
    mean_I = total_I / count
    return mean_I, (total_sq_I - count * mean_I.square()).clamp_(min=0) / (count - 1)


def group_scores(weight_HI: Tensor, variance_I: Tensor, columns: int) -> Tensor:
    """Return the standardised scores of one module's groups, float64 [I / columns]."""
    raw_I = variance_I * weight_HI.double().cpu().square().sum(0)
    standardised_I = (raw_I - raw_I.mean()) / raw_I.std().clamp_(min=torch.finfo(torch.float64).tiny)
    return standardised_I.unflatten(0, (-1, columns)).mean(1)


def plan_including_biases(
    scores: Scores, geometry: Geometry, budget_params: int, has_bias: Mapping[str, bool]
) -> PrunePlan:
    """Return a plan that also removes as many parameters as the biases it requires will add."""
    added = 0
    while True:
        plan = global_plan(scores, geometry, budget_params + added, ShapeRules(1, 1))
        kinds = [kind for index, keep in enumerate(plan.layers) for kind in _pruned_kinds(keep, index, geometry)]
        needed = geometry.hidden_size * sum(not has_bias[kind] for kind in kinds)
        if needed <= added:
            return plan
        added = needed


def _pruned_kinds(keep: LayerKeep, index: int, geometry: Geometry) -> list[str]:
    """Return the kinds of a layer's blocks that lose groups."""
    dense = geometry.shapes[index]
    smaller = {
        "attention": keep.shape.num_kv_groups < dense.num_kv_groups,
        "mlp": keep.shape.mlp_width < dense.mlp_width,
    }
    return [kind for kind in OUTPUT_PROJECTIONS if smaller[kind]]


def _compensated_bias(layer: nn.Module, kind: str, mean_I: Tensor, keep: LayerKeep, geometry: Geometry) -> Tensor:
    """Return the dense bias plus the mean output of the removed columns, float64 [H]."""
    projection: Any = layer.get_submodule(OUTPUT_PROJECTIONS[kind])
    kept = torch.tensor(keep.kv_groups if kind == "attention" else keep.mlp_channels)
    columns = geometry.columns_per_group(kind)
    removed_I = torch.ones(len(mean_I) // columns, dtype=torch.float64).index_fill_(0, kept, 0)
    removed_I = removed_I.repeat_interleave(columns)
    bias_H = projection.weight.double().cpu() @ (removed_I * mean_I)
    return bias_H if projection.bias is None else bias_H + projection.bias.double().cpu()
