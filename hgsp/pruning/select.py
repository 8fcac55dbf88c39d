"""Selection: groups of all layers and both kinds are dropped in ascending order of score until the budget is spent.

G groups | L layers. Budget and costs are in parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.scoring.groups import ATTENTION, MLP, GroupTable, Ints

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MinimumSizes:
    """Minimum sizes of layers that are not removed whole, and layers that are never touched.

    Args:
        min_kv_groups: at least 1.
        min_mlp_width: channels, at least 1.
        freeze_first, freeze_last: numbers of layers that stay as they are.

    Raises:
        InputError: a minimum size below 1.
    """

    min_kv_groups: int = 1
    min_mlp_width: int = 32
    freeze_first: int = 0
    freeze_last: int = 0

    def __post_init__(self) -> None:
        if self.min_kv_groups < 1 or self.min_mlp_width < 1:
            raise InputError(
                expected="minimum sizes of at least one KV group and one MLP channel",
                got=f"{self.min_kv_groups} and {self.min_mlp_width}",
                remedy="use epsilon to remove layers whole",
            )

    def frozen_layers(self, num_layers: int) -> frozenset[int]:
        """Return the indices of the layers that are never touched."""
        return frozenset({*range(self.freeze_first), *range(num_layers - self.freeze_last, num_layers)})

    def smallest_shapes(self, geometry: Geometry) -> tuple[LayerShape, ...]:
        """Return the smallest shape that every layer may be pruned to."""
        frozen = self.frozen_layers(geometry.num_layers)
        return tuple(
            shape
            if index in frozen
            else LayerShape(min(shape.num_kv_groups, self.min_kv_groups), min(shape.mlp_width, self.min_mlp_width))
            for index, shape in enumerate(geometry.shapes)
        )


def budget_for_ratio(geometry: Geometry, ratio: float, minimum_sizes: MinimumSizes) -> int:
    """Return the parameters to remove for a fraction of ALL parameters.

    Raises:
        InputError: minimum sizes and frozen layers make the ratio unreachable; the message has the highest reachable
            one.
    """
    budget = int(ratio * geometry.total_params)
    reachable = geometry.decoder_params - sum(
        geometry.layer_params(shape) for shape in minimum_sizes.smallest_shapes(geometry)
    )
    if budget > reachable:
        highest = np.floor(1e4 * reachable / geometry.total_params) / 1e4
        raise InputError(
            expected=f"a ratio of at most {highest:.4f} of all parameters",
            got=f"{ratio}",
            remedy="lower --pruning_ratio, --min_kv_groups or --min_mlp_width, or freeze fewer layers",
        )
    return budget


def select_groups(
    table: GroupTable,
    geometry: Geometry,
    budget_params: int,
    minimum_sizes: MinimumSizes,
    epsilon: float | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> PrunePlan:
    """Drop groups in ascending order of score, skipping those that exceed the rest of the budget.

    The unspent rest is less than the cost of an MLP channel if any selection achieves that. Ties: earlier layer first,
    attention first, lower index first.

    Args:
        budget_params: parameters to remove at most.
        epsilon: a layer that would keep less than this fraction of its parameters is removed whole if the budget
            allows it, and the budget is spent again on the others; None removes no layer whole.
        provenance: of the plan, JSON types only.
    """
    removed_layers: list[int] = []
    kept = _select_greedily(table, geometry, budget_params, minimum_sizes, removed_layers)
    while epsilon is not None:
        collapsed = _collapsed_layers(table, geometry, kept, minimum_sizes, epsilon, removed_layers, budget_params)
        if not collapsed:
            break
        removed_layers += collapsed
        kept = _select_greedily(table, geometry, budget_params, minimum_sizes, removed_layers)
    layers = _layers_of(table, kept, geometry.num_layers)
    removed = sum(
        geometry.layer_params(dense) - geometry.layer_params(keep.shape)
        for dense, keep in zip(geometry.shapes, layers, strict=True)
    )
    return PrunePlan(layers, budget_params, removed, dict(provenance or {}), geometry=geometry)


def kept_mask(table: GroupTable, plan: PrunePlan) -> Mask:
    """Return the mask of the table's rows that the plan keeps, bool [G]."""
    kept = np.zeros(len(table), dtype=bool)
    start = np.searchsorted(table.layer * 2 + table.kind, np.arange(2 * len(plan.layers)))
    for index, keep in enumerate(plan.layers):
        kept[start[2 * index + ATTENTION] + np.array(keep.kv_groups, dtype=np.int64)] = True
        kept[start[2 * index + MLP] + np.array(keep.mlp_channels, dtype=np.int64)] = True
    return kept


def _select_greedily(
    table: GroupTable, geometry: Geometry, budget: int, minimum_sizes: MinimumSizes, removed_layers: Sequence[int]
) -> Mask:
    """Return the mask [G] of kept groups, with ``removed_layers`` removed first and the rest of the budget spent."""
    removed_whole = np.isin(table.layer, removed_layers)
    remaining = budget - sum(geometry.layer_params(geometry.shapes[index]) for index in removed_layers)
    order = np.lexsort((table.group, table.kind, table.layer, table.score))
    order = candidates = order[~(removed_whole | _protected(table, geometry, minimum_sizes))[order]]
    kept = ~removed_whole
    while len(order := order[table.cost[order] <= remaining]):
        spent = np.cumsum(table.cost[order])
        num_fitting = int(np.searchsorted(spent, remaining, side="right"))
        kept[order[:num_fitting]] = False
        remaining -= int(spent[num_fitting - 1])
        order = order[num_fitting:]
    if remaining >= geometry.mlp_channel_params:
        _exchange_channels_for_a_kv_group(table, geometry, candidates, kept, remaining)
    return kept


def _exchange_channels_for_a_kv_group(
    table: GroupTable, geometry: Geometry, candidates: Ints, kept: Mask, remaining: int
) -> None:
    """Drop the next KV group, and restore as few MLP channels as make it fit the budget. Changes ``kept``.

    Otherwise the budget is missed by up to one KV group once all channels are dropped that may be.
    """
    unaffordable = candidates[kept[candidates]]
    channels = candidates[(table.kind[candidates] == MLP) & ~kept[candidates]]
    num_restored = -((remaining - geometry.kv_group_params) // geometry.mlp_channel_params)
    if len(unaffordable) and num_restored <= len(channels):
        kept[unaffordable[0]] = False
        kept[channels[-num_restored:]] = True


def _protected(table: GroupTable, geometry: Geometry, minimum_sizes: MinimumSizes) -> Mask:
    """Return the mask [G] of the highest-scored groups of every block, up to its minimum size."""
    block = table.layer * 2 + table.kind
    order = np.lexsort((table.group, table.score, block))
    sizes = np.array([(shape.num_kv_groups, shape.mlp_width) for shape in geometry.shapes]).ravel()
    minimum = np.array(
        [(shape.num_kv_groups, shape.mlp_width) for shape in minimum_sizes.smallest_shapes(geometry)]
    ).ravel()
    rank_from_top = np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(len(table))
    protected = np.zeros(len(table), dtype=bool)
    protected[order] = rank_from_top < np.repeat(minimum, sizes)
    return protected


def _collapsed_layers(
    table: GroupTable,
    geometry: Geometry,
    kept: Mask,
    minimum_sizes: MinimumSizes,
    epsilon: float,
    removed_layers: Sequence[int],
    budget: int,
) -> list[int]:
    """Return the layers that keep less than ``epsilon`` of their parameters, smallest first, within the budget."""
    whole = np.array([geometry.layer_params(shape) for shape in geometry.shapes])
    dropped = np.bincount(table.layer, weights=table.cost * ~kept, minlength=geometry.num_layers)
    kept_ratio = 1 - dropped / whole
    touchable = set(range(geometry.num_layers)) - minimum_sizes.frozen_layers(geometry.num_layers)
    spent = sum(whole[index] for index in removed_layers)
    collapsed: list[int] = []
    for index in sorted(touchable - set(removed_layers), key=lambda layer: (kept_ratio[layer], layer)):
        leaves_others = len(removed_layers) + len(collapsed) + 1 < geometry.num_layers
        if kept_ratio[index] >= epsilon or not leaves_others or spent + whole[index] > budget:
            break
        collapsed.append(index)
        spent += whole[index]
    return collapsed


def _layers_of(table: GroupTable, kept: Mask, num_layers: int) -> tuple[LayerKeep, ...]:
    indices: dict[tuple[int, int], Ints] = {}
    bounds = np.searchsorted(table.layer * 2 + table.kind, np.arange(2 * num_layers + 1))
    for layer in range(num_layers):
        for kind in (ATTENTION, MLP):
            block = slice(bounds[2 * layer + kind], bounds[2 * layer + kind + 1])
            indices[layer, kind] = table.group[block][kept[block]]
    return tuple(
        LayerKeep(tuple(indices[layer, ATTENTION].tolist()), tuple(indices[layer, MLP].tolist()))
        for layer in range(num_layers)
    )
