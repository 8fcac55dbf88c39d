"""Selection: groups of all layers and kinds are dropped in ascending order of score until the budget is spent.

G groups | U units, groups that leave together | L layers. Budget and costs are in parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.models.kinds import GROUP_KINDS
from hgsp.pruning.mixtures import drop_in_turn, importance_of, params_in_both, params_of
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.pruning.units import Mask, Units, protected_units, ranked_below, units_of
from hgsp.scoring.groups import ATTENTION, EXPERT, EXPERT_CHANNEL, MLP, GroupTable, Ints, block_of

#: A block of one layer: (layer, ``ATTENTION`` or ``MLP``, be it of channels or of experts).
BlockIndex = tuple[int, int]


def select_groups(
    table: GroupTable,
    geometry: Geometry,
    budget_params: int,
    shape_rules: ShapeRules,
    epsilon: float | None = None,
    provenance: Mapping[str, Any] | None = None,
    emptied: Collection[BlockIndex] = (),
) -> PrunePlan:
    """Drop groups in ascending order of score, skipping those that exceed the rest of the budget.

    The unspent rest is less than the cost of a block of MLP channels (``ShapeRules.mlp_multiple_of``) if any selection
    achieves that, and of a KV group or an expert in models without channels; of uniform plans, less than a block in
    every layer. Ties: earlier layer first, attention first, lower index first. Where experts lose channels, see
    ``hgsp.pruning.mixtures``.

    Args:
        budget_params: parameters to remove at most.
        epsilon: a layer that would keep less than this fraction of its parameters is removed whole if the budget
            allows it, and the budget is spent again on the others; None removes no layer whole.
        provenance: of the plan, JSON types only.
        emptied: blocks that are removed first, within the budget.

    Raises:
        InputError: equal layers of a model whose layers differ, or emptied blocks that exceed the budget.
    """
    shape_rules.check_equal_layers(geometry)
    removed = set(emptied)
    _check_emptied(geometry, removed, budget_params)
    kept = _select(table, geometry, budget_params, shape_rules, removed)
    while epsilon is not None:
        collapsed = _collapsed_layers(table, geometry, kept, shape_rules, epsilon, removed, budget_params)
        if not collapsed:
            break
        removed |= {(layer, block) for layer in collapsed for block in (ATTENTION, MLP)}
        kept = _select(table, geometry, budget_params, shape_rules, removed)
    layers = _layers_of(table, kept, geometry, removed)
    removed_params = sum(
        geometry.layer_params(dense) - geometry.layer_params(keep.shape)
        for dense, keep in zip(geometry.shapes, layers, strict=True)
    )
    return PrunePlan(layers, budget_params, removed_params, dict(provenance or {}), geometry=geometry)


def kept_mask(table: GroupTable, plan: PrunePlan) -> Mask:
    """Return the mask of the table's rows that the plan keeps, bool [G]."""
    kept = np.zeros(len(table), dtype=bool)
    start = np.searchsorted(table.part, np.arange(len(GROUP_KINDS) * len(plan.layers) + 1))
    for index, keep in enumerate(plan.layers):
        for kind, indices in enumerate(keep.groups.values()):
            first, stop = start[len(GROUP_KINDS) * index + kind :][:2]
            if stop > first:  # slots have no rows where experts leave whole
                kept[first + np.array(indices, dtype=np.int64)] = True
    return kept


def _check_emptied(geometry: Geometry, emptied: Collection[BlockIndex], budget: int) -> None:
    params, num_complete = _block_params(geometry, emptied), geometry.num_layers - len({layer for layer, _ in emptied})
    if params > budget or num_complete < 1:
        raise InputError(
            expected=f"emptied blocks of at most {budget} parameters, and a layer that keeps both",
            got=f"{params} parameters, {num_complete} layers that keep both",
            remedy="empty fewer, or remove more parameters",
        )


def _select(
    table: GroupTable, geometry: Geometry, budget: int, shape_rules: ShapeRules, removed: Collection[BlockIndex]
) -> Mask:
    """Return the mask [G] of kept groups, with ``removed`` blocks removed first and the rest of the budget spent."""
    units = units_of(table, geometry, shape_rules)
    gone = np.isin(units.layer * 2 + block_of(units.kind), [2 * layer + block for layer, block in removed])
    remaining = budget - _block_params(geometry, removed)
    if shape_rules.has_equal_layers:
        kept = _equal_layers(units, gone, remaining, shape_rules, geometry)
    else:
        protected = gone | protected_units(units, gone, geometry, shape_rules)
        kept = _drop_greedily(units, ~gone, protected, remaining, geometry)
    return kept[units.of_group]


def _drop_greedily(units: Units, kept: Mask, protected: Mask, remaining: int, geometry: Geometry) -> Mask:
    """Return the mask [U] of the units that stay when others leave in ascending order while they fit the budget."""
    if (units.kind == EXPERT_CHANNEL).any():
        return drop_in_turn(units, kept, protected, remaining, geometry)
    kept = kept.copy()
    order = candidates = units.ascending(~protected)
    while len(order := order[units.cost[order] <= remaining]):
        spent = np.cumsum(units.cost[order])
        num_fitting = int(np.searchsorted(spent, remaining, side="right"))
        kept[order[:num_fitting]] = False
        remaining -= int(spent[num_fitting - 1])
        order = order[num_fitting:]
    _exchange_channels_for_a_kv_group(units, candidates, kept, remaining)
    return kept


def _exchange_channels_for_a_kv_group(units: Units, candidates: Ints, kept: Mask, remaining: int) -> None:
    """Drop the next KV group, and restore as few units of channels as make it fit the budget. Changes ``kept``.

    Otherwise the budget is missed by up to one KV group once all channels are dropped that may be.
    """
    kv_groups = candidates[kept[candidates] & (units.kind[candidates] == ATTENTION)]
    channels = candidates[~kept[candidates] & (units.kind[candidates] == MLP)][::-1]
    steps = units.cost[candidates[(units.kind[candidates] == MLP) & ~units.is_last[candidates]]]
    if not len(kv_groups) or not len(steps) or remaining < steps.max():
        return
    restored = np.cumsum(units.cost[channels])
    num_restored = int(np.searchsorted(restored, units.cost[kv_groups[0]] - remaining)) + 1
    if num_restored <= len(channels):
        kept[kv_groups[0]] = False
        kept[channels[:num_restored]] = True


def _equal_layers(units: Units, gone: Mask, remaining: int, shape_rules: ShapeRules, geometry: Geometry) -> Mask:
    """Return the mask [U] of the units that stay when every layer drops the same number of KV groups.

    Every number is tried, and the rest of the budget is spent on channels or experts, the same number in every layer
    where the rules ask for it. Where experts lose channels too, every number of experts is tried as well. Among the
    plans that spend the budget, that with the lowest sum of importance dropped is chosen.
    """
    last = ~gone & units.is_last
    plans = []
    for kept in _equal_starts(units, gone, shape_rules):
        rest = remaining - params_of(units, ~gone & ~kept, geometry)
        if rest < 0:
            continue
        if shape_rules.uniform:
            kept, rest = _drop_ranks(units, kept, rest, geometry)
        else:
            before = kept
            kept = _drop_greedily(units, kept, ~kept | units.is_last | (units.kind == ATTENTION), rest, geometry)
            rest -= params_of(units, before & ~kept, geometry)
        plans.append((rest, importance_of(units, ~gone & ~kept, geometry), kept))
    step = units.cost[(units.kind != ATTENTION) & ~units.is_last & ~gone]
    tolerance = (int(step.max()) if len(step) else 0) * (int(last.sum()) // 2 if shape_rules.uniform else 1)
    spending = min(rest for rest, _, _ in plans) + tolerance
    return min((plan for plan in plans if plan[0] <= spending), key=lambda plan: plan[1])[2]


def _equal_starts(units: Units, gone: Mask, shape_rules: ShapeRules) -> Iterator[Mask]:
    """Yield masks [U] of units that stay when layers drop numbers of KV groups, and of experts that lose channels."""
    last = ~gone & units.is_last
    has_slots = shape_rules.uniform and bool((units.kind == EXPERT_CHANNEL).any())
    experts = range(int(units.rank[last & (units.kind == EXPERT)].min()) + 1) if has_slots else range(1)
    for num_dropped in range(int(units.rank[last & (units.kind == ATTENTION)].min()) + 1):
        for num_experts in experts:
            yield ~gone & ~ranked_below(units, num_dropped) & ~ranked_below(units, num_experts, EXPERT)


def _drop_ranks(units: Units, kept: Mask, remaining: int, geometry: Geometry) -> tuple[Mask, int]:
    """Drop the first units of every MLP, of experts that lose channels the first slots, while they fit the budget.

    Returns the mask [U] of units that stay and the rest of the budget.
    """
    has_slots = bool((units.kind == EXPERT_CHANNEL).any())
    in_mlp = kept & (units.kind == EXPERT_CHANNEL if has_slots else units.kind != ATTENTION)
    highest = int(units.rank[in_mlp & units.is_last].min())
    for rank in range(highest):
        dropped = in_mlp & (units.rank == rank)
        cost = params_of(units, ~kept | dropped, geometry) - params_of(units, ~kept, geometry)
        if cost > remaining:
            break
        kept = kept & ~dropped
        remaining -= cost
    return kept, remaining


def _block_params(geometry: Geometry, blocks: Collection[BlockIndex]) -> int:
    """Count the parameters of blocks of the dense model."""
    total = 0
    for layer, block in blocks:
        shape = geometry.shapes[layer]
        gone: dict[str, Any] = {shape.kinds[block].size: 0} | (
            {"linear_attention": False} if block == ATTENTION else {}
        )
        emptied = replace(shape, **gone)
        total += geometry.layer_params(shape) - geometry.layer_params(emptied)
    return total


def _collapsed_layers(
    table: GroupTable,
    geometry: Geometry,
    kept: Mask,
    shape_rules: ShapeRules,
    epsilon: float,
    removed: Collection[BlockIndex],
    budget: int,
) -> list[int]:
    """Return the layers that keep less than ``epsilon`` of their parameters, smallest first, within the budget."""
    whole = np.array([geometry.layer_params(shape) for shape in geometry.shapes])
    dropped = np.bincount(table.layer, weights=table.cost * ~kept, minlength=geometry.num_layers)
    kept_ratio = 1 - (dropped - params_in_both(table.layer, table.kind, ~kept, geometry)) / whole
    blocks = set(table.block[kept].tolist())
    complete = {layer for layer in range(geometry.num_layers) if {2 * layer + ATTENTION, 2 * layer + MLP} <= blocks}
    removed_layers = {layer for layer, block in removed if (layer, MLP + ATTENTION - block) in removed}
    touchable = set(range(geometry.num_layers)) - shape_rules.frozen_layers(geometry.num_layers)
    spent = _block_params(geometry, removed)
    collapsed: list[int] = []
    for index in sorted(touchable - removed_layers, key=lambda layer: (kept_ratio[layer], layer)):
        leaves_others = complete - {*collapsed, index}
        if kept_ratio[index] >= epsilon or not leaves_others or spent + whole[index] > budget:
            break
        collapsed.append(index)
        spent += whole[index]
    return collapsed


def _layers_of(
    table: GroupTable, kept: Mask, geometry: Geometry, removed: Collection[BlockIndex]
) -> tuple[LayerKeep, ...]:
    bounds = np.searchsorted(table.part, np.arange(len(GROUP_KINDS) * geometry.num_layers + 1))
    parts = (slice(first, stop) for first, stop in itertools.pairwise(bounds))
    indices = [tuple(table.group[part][kept[part]].tolist()) for part in parts]
    layers = zip(*[iter(indices)] * len(GROUP_KINDS), strict=True)
    linear = (
        shape.linear_attention and not {(index, ATTENTION), (index, MLP)} <= set(removed)
        for index, shape in enumerate(geometry.shapes)
    )
    return tuple(
        _with_channels(LayerKeep(*groups, linear_attention=has), geometry.shapes[index], table.channel_order.get(index))
        for index, (groups, has) in enumerate(zip(layers, linear, strict=True))
    )


def _with_channels(keep: LayerKeep, dense: LayerShape, order_EW: Ints | None) -> LayerKeep:
    """Return the groups of a layer with the slots of its experts, and their channels if some leave.

    Args:
        order_EW: the channel that every expert has in every slot; None where experts leave whole.
    """
    if not keep.experts:
        return replace(keep, expert_slots=())
    if order_EW is None:
        return replace(keep, expert_slots=tuple(range(dense.expert_width)))
    if len(keep.expert_slots) == dense.expert_width:
        return keep
    channels = np.sort(order_EW[np.ix_(keep.experts, keep.expert_slots)], axis=1)
    return replace(keep, expert_channels=tuple(map(tuple, channels.tolist())))
