"""Experts and their channels under one budget: the cost of a unit depends on the losses of its layer.

A channel of an expert belongs to the expert and to its slot. Where e experts and s slots of a layer leave, e * s
channels are in both, and are counted once. The order stays that of scores of the dense model, as for all other groups.

U units | P parts, the groups of one layer and kind
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hgsp.models.geometry import Geometry
from hgsp.models.kinds import GROUP_KINDS
from hgsp.scoring.groups import EXPERT, EXPERT_CHANNEL, Floats, Ints

if TYPE_CHECKING:
    from hgsp.pruning.units import Mask, Units

#: The kind that shares channels with another.
OTHER = {EXPERT: EXPERT_CHANNEL, EXPERT_CHANNEL: EXPERT}


def params_in_both(layer: Ints, kind: Ints, count: npt.NDArray[np.int64 | np.bool_], geometry: Geometry) -> Floats:
    """Return the parameters of every layer that leave with an expert and with a slot, [L].

    Args:
        layer, kind, count: of groups or units; the count is the number of groups that leave.
    """
    experts, slots = (
        np.bincount(layer, weights=count * (kind == of), minlength=geometry.num_layers)
        for of in (EXPERT, EXPERT_CHANNEL)
    )
    return np.asarray(experts * slots * geometry.expert_channel_params, dtype=np.float64)


def params_of(units: Units, dropped: Mask, geometry: Geometry) -> int:
    """Count the parameters that leave with units, those in an expert and in a slot once."""
    both = params_in_both(units.layer, units.kind, units.num_groups * dropped, geometry)
    return int(units.cost[dropped].sum()) - int(both.sum())


def importance_of(units: Units, dropped: Mask, geometry: Geometry) -> float:
    """Return the importance that leaves with units; slots count for the experts that stay alone."""
    loss, is_expert = units.score * units.cost, units.kind == EXPERT
    experts, gone = (
        np.bincount(units.layer, weights=units.num_groups * is_expert * leaves, minlength=geometry.num_layers)
        for leaves in (1, dropped)
    )
    stay_L = 1 - gone / np.maximum(experts, 1)
    return float((loss * np.where(units.kind == EXPERT_CHANNEL, stay_L[units.layer], 1.0))[dropped].sum())


def drop_in_turn(units: Units, kept: Mask, protected: Mask, remaining: int, geometry: Geometry) -> Mask:
    """Return the mask [U] of the units that stay when others leave one by one in ascending order.

    A turn drops the weakest unit that its layer and kind have left, if its cost there and then fits the budget. The
    order is run through until nothing fits: units become cheaper as those of the other kind leave.
    """
    kept = kept.copy()
    order = units.ascending(~protected).tolist()
    part = units.layer * len(GROUP_KINDS) + units.kind
    waiting: dict[int, list[int]] = {}
    for unit in reversed(order):  # ascending from the end
        waiting.setdefault(int(part[unit]), []).append(unit)
    lost: dict[tuple[int, int], int] = {}
    for unit in np.flatnonzero(~kept).tolist():
        place = int(units.layer[unit]), int(units.kind[unit])
        lost[place] = lost.get(place, 0) + int(units.num_groups[unit])
    spent = -1
    while spent:
        spent = 0
        for turn in order:
            left = waiting[int(part[turn])]
            if not left:
                continue
            unit, layer, kind = left[-1], int(units.layer[turn]), int(units.kind[turn])
            size = int(units.num_groups[unit])
            gone = lost.get((layer, OTHER[kind]), 0) if kind in OTHER else 0
            cost = int(units.cost[unit]) - size * gone * geometry.expert_channel_params
            if cost <= remaining - spent:
                left.pop()
                kept[unit] = False
                lost[layer, kind] = lost.get((layer, kind), 0) + size
                spent += cost
        remaining -= spent
    return kept
