"""Units of the selection: groups that leave together. KV groups and experts are alone, channels come in blocks.

G groups | U units | P parts, the groups of one layer and kind
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hgsp.models.geometry import Geometry
from hgsp.models.kinds import GROUP_KINDS
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.scoring.groups import ATTENTION, EXPERT_CHANNEL, MLP, Floats, GroupTable, Ints

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Units:
    """Arrays [U], ordered by part and, within it, by ascending score.

    Args:
        rank: within the part, 0 for the unit that leaves first.
        score: mean over the unit's groups.
        cost: parameters that leave with the unit, if nothing else does.
        num_groups: of the unit.
        is_last: whether nothing of the part stays without the unit; it holds the part's minimum size.
        of_group: unit of every row of the table, [G].
    """

    layer: Ints
    kind: Ints
    rank: Ints
    score: Floats
    cost: Ints
    num_groups: Ints
    is_last: Mask
    of_group: Ints

    def ascending(self, candidates: Mask) -> Ints:
        """Return the indices of some units in the order in which they leave.

        Ties: earlier layer first, attention first, lower rank first.
        """
        order = np.lexsort((self.rank, self.kind, self.layer, self.score))
        return order[candidates[order]]


def units_of(table: GroupTable, geometry: Geometry, shape_rules: ShapeRules) -> Units:
    """Divide the groups into units.

    The groups of a part are ordered by score, ties by index. The highest-scored ones, up to the minimum size, are the
    last unit. The others leave in blocks of the rules' multiple of channels; the first one is smaller where their
    number is no multiple.
    """
    part = table.part
    order = np.lexsort((table.group, table.score, part))
    sizes_P, step_P, leaving_P = _sizes(table, geometry, shape_rules)
    first_P = np.cumsum(sizes_P) - sizes_P
    rank = np.arange(len(table)) - np.repeat(first_P, sizes_P)
    step, leaving = np.repeat(step_P, sizes_P), np.repeat(leaving_P, sizes_P)
    step_of_rank = (np.minimum(rank, leaving) + -leaving % step) // step
    # the first unit of a part has rank 0, also where all of the part is its minimum size
    starts = np.flatnonzero(np.diff(step_of_rank, prepend=-1) | np.diff(part[order], prepend=-1))
    counts = np.diff(starts, append=len(table))
    of_group = np.empty(len(table), dtype=np.int64)
    of_group[order] = np.repeat(np.arange(len(starts)), counts)
    layer, kind = table.layer[order][starts], table.kind[order][starts]
    is_last = np.append(np.diff(part[order][starts]) != 0, True)
    cost = np.add.reduceat(table.cost[order], starts)
    if shape_rules.allow_empty_blocks:  # what belongs to no group leaves with the block's last unit
        extra = np.array([geometry.extra_params(kind.name) for kind in GROUP_KINDS])
        cost = cost + is_last * extra[kind]
    score = np.add.reduceat(table.score[order], starts) / counts
    return Units(layer, kind, step_of_rank[starts], score, cost, counts, is_last, of_group)


def _sizes(table: GroupTable, geometry: Geometry, shape_rules: ShapeRules) -> tuple[Ints, Ints, Ints]:
    """Return, for every part [P], its groups, the groups of a unit, and the groups beyond the minimum size."""
    shapes = shape_rules.smallest_shapes(geometry)
    minimum = np.array([[shape.size_of(kind.name) for kind in GROUP_KINDS] for shape in shapes])
    sizes = np.bincount(table.part, minlength=minimum.size).reshape(minimum.shape)
    step = np.ones_like(sizes)
    for kind in (MLP, EXPERT_CHANNEL):
        step[:, kind] = shape_rules.multiple_for(geometry, GROUP_KINDS[kind].name)
    return sizes.ravel(), step.ravel(), (sizes - np.minimum(minimum, sizes)).ravel()


def protected_units(units: Units, gone: Mask, geometry: Geometry, shape_rules: ShapeRules) -> Mask:
    """Return the mask [U] of units that never leave: the last ones, or some where blocks may be emptied.

    Those are the units of frozen layers, or else of the most important layer that has both blocks left. The last slots
    of experts leave with the experts alone.

    Args:
        gone: units that are removed already, [U].
    """
    if not shape_rules.allow_empty_blocks:
        return units.is_last
    importance_L = np.bincount(units.layer, weights=units.score * units.cost, minlength=geometry.num_layers)
    importance_L[units.layer[gone]] = -1
    attends = {index for index, shape in enumerate(geometry.shapes) if shape.num_kv_groups}
    frozen = shape_rules.frozen_layers(geometry.num_layers)
    whole = [*frozen] if frozen & attends else [*frozen, max(sorted(attends), key=importance_L.__getitem__)]
    return units.is_last & (np.isin(units.layer, whole) | (units.kind == EXPERT_CHANNEL))


def ranked_below(units: Units, num_units: int, kind: int = ATTENTION) -> Mask:
    """Return the mask [U] of the first ``num_units`` units of one kind in every layer."""
    return (units.kind == kind) & (units.rank < num_units)
