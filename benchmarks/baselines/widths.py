"""From scores of groups to a plan: the same widths in every layer, or one global order.

G groups of one block
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.select import MinimumSizes, select_groups
from hgsp.scoring.groups import build_group_table

#: Per layer ``{"attention": [K], "mlp": [M]}``; the lowest leave.
Scores = Sequence[Mapping[str, Tensor]]


def uniform_shapes(geometry: Geometry, budget_params: int, band: range | None = None) -> list[LayerShape]:
    """What every layer keeps when those of ``band`` (unset: all) lose the same fraction.

    Each loses the same whole number of KV groups, the fraction of the band's parameters rounded down, and the rest of
    the budget in channels, one more in the first layers where it does not divide. Misses it by less than one channel.

    Raises:
        InputError: more than all but one KV group and channel of every layer in the band.
    """
    band = range(geometry.num_layers) if band is None else band
    full = geometry.shapes[0]
    assert set(geometry.shapes) == {full}, "uniform widths of a dense model"
    fraction = budget_params / (len(band) * geometry.layer_params(full))
    for num_groups in range(int(fraction * full.num_kv_groups), full.num_kv_groups):
        left = budget_params - len(band) * num_groups * geometry.kv_group_params
        each, more = divmod(left // geometry.mlp_channel_params, len(band))
        if each >= 0 and each + (more > 0) < full.mlp_width:
            shapes = list(geometry.shapes)
            for place, index in enumerate(band):
                channels = full.mlp_width - each - (place < more)
                shapes[index] = LayerShape(full.num_kv_groups - num_groups, channels)
            return shapes
    raise InputError(
        expected=f"a budget that layers {band.start} to {band.stop - 1} can give without one of them vanishing",
        got=f"{budget_params} parameters",
        remedy="remove less",
    )


def strongest(scores_G: Tensor, num_kept: int) -> tuple[int, ...]:
    """Indices of the highest scores, sorted; of equal ones the first."""
    order = torch.argsort(scores_G, descending=True, stable=True)
    return tuple(sorted(order[:num_kept].tolist()))


def plan_keeping(layers: Iterable[LayerKeep], geometry: Geometry, budget_params: int) -> PrunePlan:
    """The plan that keeps exactly this."""
    layers = tuple(layers)
    removed = geometry.decoder_params - sum(geometry.layer_params(keep.shape) for keep in layers)
    return PrunePlan(layers, budget_params, removed)


def uniform_plan(scores: Scores, geometry: Geometry, budget_params: int, band: range | None = None) -> PrunePlan:
    """The strongest groups of every block, as many as ``uniform_shapes`` says."""
    shapes = uniform_shapes(geometry, budget_params, band)
    return plan_keeping(
        (
            LayerKeep(strongest(by_kind["attention"], shape.num_kv_groups), strongest(by_kind["mlp"], shape.mlp_width))
            for by_kind, shape in zip(scores, shapes, strict=True)
        ),
        geometry,
        budget_params,
    )


def global_plan(scores: Scores, geometry: Geometry, budget_params: int, minimum_sizes: MinimumSizes) -> PrunePlan:
    """Groups leave in ascending score, whatever they cost, until the budget is spent; costs are the true ones."""
    cost = {"attention": geometry.kv_group_params, "mlp": geometry.mlp_channel_params}
    raw = [{kind: scores_G.double().numpy() for kind, scores_G in by_kind.items()} for by_kind in scores]
    by_cost = [{kind: values * cost[kind] for kind, values in by_kind.items()} for by_kind in raw]
    # the table divides by the cost, which these methods do not
    return select_groups(build_group_table(raw, geometry, by_cost), geometry, budget_params, minimum_sizes)
