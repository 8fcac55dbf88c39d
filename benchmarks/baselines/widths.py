"""Plans from group scores: the same widths in every layer, or one global ranking.

G groups of one block
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.scoring.groups import build_group_table

#: Per layer ``{"attention": [K], "mlp": [M]}``; the lowest are removed.
Scores = Sequence[Mapping[str, Tensor]]


def uniform_shapes(geometry: Geometry, budget_params: int, band: range | None = None) -> list[LayerShape]:
    """Return the shape of every layer if those of ``band`` (default: all) lose the same fraction.

    Each layer of the band loses the same number of KV groups, its fraction rounded down, and the rest of the budget in
    channels; the first layers lose one more if the channels do not divide evenly. The plan removes less than the budget
    by under one channel.

    Raises:
        InputError: the band cannot give that much and keep one KV group and one channel per layer.
    """
    band = range(geometry.num_layers) if band is None else band
    full = geometry.shapes[0]
    assert set(geometry.shapes) == {full}, "expected a dense model"
    fraction = budget_params / (len(band) * geometry.layer_params(full))
    for num_groups in range(int(fraction * full.num_kv_groups), full.num_kv_groups):
        remaining = budget_params - len(band) * num_groups * geometry.kv_group_params
        each, more = divmod(remaining // geometry.mlp_channel_params, len(band))
        if each >= 0 and each + (more > 0) < full.mlp_width:
            shapes = list(geometry.shapes)
            for place, index in enumerate(band):
                channels = full.mlp_width - each - (place < more)
                shapes[index] = LayerShape(full.num_kv_groups - num_groups, channels)
            return shapes
    raise InputError(
        expected=f"a budget that layers {band.start} to {band.stop - 1} can give without losing a whole block",
        got=f"{budget_params} parameters",
        remedy="remove less",
    )


def top_indices(scores_G: Tensor, num_kept: int) -> tuple[int, ...]:
    """Return the indices of the highest scores, ascending; ties go to the lower index."""
    order = torch.argsort(scores_G, descending=True, stable=True)
    return tuple(sorted(order[:num_kept].tolist()))


def plan_keeping(layers: Iterable[LayerKeep], geometry: Geometry, budget_params: int) -> PrunePlan:
    """Return the plan that keeps exactly these groups."""
    layers = tuple(layers)
    removed = geometry.decoder_params - sum(geometry.layer_params(keep.shape) for keep in layers)
    return PrunePlan(layers, budget_params, removed)


def uniform_plan(scores: Scores, geometry: Geometry, budget_params: int, band: range | None = None) -> PrunePlan:
    """Return the plan that keeps the highest-scoring groups of every block, to the widths of ``uniform_shapes``."""
    shapes = uniform_shapes(geometry, budget_params, band)
    return plan_keeping(
        (
            LayerKeep(
                top_indices(by_kind["attention"], shape.num_kv_groups), top_indices(by_kind["mlp"], shape.mlp_width)
            )
            for by_kind, shape in zip(scores, shapes, strict=True)
        ),
        geometry,
        budget_params,
    )


def global_plan(scores: Scores, geometry: Geometry, budget_params: int, shape_rules: ShapeRules) -> PrunePlan:
    """Return the plan that removes groups in ascending order of score alone until the budget is spent."""
    cost = {"attention": geometry.kv_group_params, "mlp": geometry.mlp_channel_params}
    raw = [{kind: scores_G.double().numpy() for kind, scores_G in by_kind.items()} for by_kind in scores]
    by_cost = [{kind: values * cost[kind] for kind, values in by_kind.items()} for by_kind in raw]
    # multiplied by the cost, because the table divides by it and these methods do not
    return select_groups(build_group_table(raw, geometry, by_cost), geometry, budget_params, shape_rules)
