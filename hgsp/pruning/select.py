"""Which groups stay: one ascending order over all layers and both kinds, cut where the budget is spent.

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
    """What a layer keeps unless it is removed whole, and the layers that are never touched."""

    min_kv_groups: int = 1
    min_mlp_width: int = 32
    freeze_first: int = 0
    freeze_last: int = 0

    def __post_init__(self) -> None:
        if self.min_kv_groups < 1 or self.min_mlp_width < 1:
            raise InputError(
                expected="floors of at least one KV group and one MLP channel",
                got=f"{self.min_kv_groups} and {self.min_mlp_width}",
                remedy="a layer that must not stay is removed whole",
            )

    def frozen_layers(self, num_layers: int) -> frozenset[int]:
        """Return the indices of the layers that are never touched."""
        return frozenset({*range(self.freeze_first), *range(num_layers - self.freeze_last, num_layers)})

    def least(self, geometry: Geometry) -> tuple[LayerShape, ...]:
        """The smallest shape every layer may be cut to."""
        frozen = self.frozen_layers(geometry.num_layers)
        return tuple(
            shape
            if index in frozen
            else LayerShape(min(shape.num_kv_groups, self.min_kv_groups), min(shape.mlp_width, self.min_mlp_width))
            for index, shape in enumerate(geometry.shapes)
        )


def budget_for_ratio(geometry: Geometry, ratio: float, minimum_sizes: MinimumSizes) -> int:
    """Parameters to remove for a fraction of ALL parameters.

    Raises:
        InputError: floors and frozen layers make the ratio unreachable; the message holds the highest reachable one.
    """
    budget = int(ratio * geometry.total_params)
    reachable = geometry.decoder_params - sum(geometry.layer_params(shape) for shape in minimum_sizes.least(geometry))
    if budget > reachable:
        highest = np.floor(1e4 * reachable / geometry.total_params) / 1e4
        raise InputError(
            expected=f"a ratio of at most {highest:.4f} of all parameters",
            got=f"{ratio}",
            remedy="lower --pruning_ratio, the floors (--min_kv_groups, --min_mlp_width) or freeze fewer layers",
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
    """Drop groups in ascending score while they fit the budget; one that does not fit is passed over.

    What is not spent is less than one MLP channel, unless no set of unprotected groups comes that close.
    Ties: earlier layer, attention first, lower index. With ``epsilon``, a layer that would keep less than this fraction
    of its parameters is removed whole, if the budget allows it, and the budget is spent again over the rest.
    """
    removed_layers: list[int] = []
    kept = _greedy_cut(table, geometry, budget_params, minimum_sizes, removed_layers)
    while epsilon is not None:
        collapsed = _collapsed_layers(table, geometry, kept, minimum_sizes, epsilon, removed_layers, budget_params)
        if not collapsed:
            break
        removed_layers += collapsed
        kept = _greedy_cut(table, geometry, budget_params, minimum_sizes, removed_layers)
    layers = _layers_of(table, kept, geometry.num_layers)
    removed = sum(
        geometry.layer_params(dense) - geometry.layer_params(keep.shape)
        for dense, keep in zip(geometry.shapes, layers, strict=True)
    )
    return PrunePlan(layers, budget_params, removed, dict(provenance or {}), geometry=geometry)


def kept_mask(table: GroupTable, plan: PrunePlan) -> Mask:
    """True for the rows of the table that the plan keeps. [G]"""
    kept = np.zeros(len(table), dtype=bool)
    start = np.searchsorted(table.layer * 2 + table.kind, np.arange(2 * len(plan.layers)))
    for index, keep in enumerate(plan.layers):
        kept[start[2 * index + ATTENTION] + np.array(keep.kv_groups, dtype=np.int64)] = True
        kept[start[2 * index + MLP] + np.array(keep.mlp_channels, dtype=np.int64)] = True
    return kept


def _greedy_cut(
    table: GroupTable, geometry: Geometry, budget: int, minimum_sizes: MinimumSizes, removed_layers: Sequence[int]
) -> Mask:
    """Mask of the groups that stay when whole ``removed_layers`` leave first and the rest of the budget is spent."""
    leaves_whole = np.isin(table.layer, removed_layers)
    remaining = budget - sum(geometry.layer_params(geometry.shapes[index]) for index in removed_layers)
    order = np.lexsort((table.group, table.kind, table.layer, table.score))
    order = candidates = order[~(leaves_whole | _protected(table, geometry, minimum_sizes))[order]]
    kept = ~leaves_whole
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
    """Spend what is left when no channel is: drop the next KV group and give back as few channels as pay for it.

    Without this the budget would be missed by up to one KV group although the floors allow it. Changes ``kept``.
    """
    too_dear = candidates[kept[candidates]]
    channels = candidates[(table.kind[candidates] == MLP) & ~kept[candidates]]
    num_back = -((remaining - geometry.kv_group_params) // geometry.mlp_channel_params)
    if len(too_dear) and num_back <= len(channels):
        kept[too_dear[0]] = False
        kept[channels[-num_back:]] = True


def _protected(table: GroupTable, geometry: Geometry, minimum_sizes: MinimumSizes) -> Mask:
    """The highest-scored groups of every (layer, kind), as many as its floor asks for. [G]"""
    block = table.layer * 2 + table.kind
    order = np.lexsort((table.group, table.score, block))
    sizes = np.array([(shape.num_kv_groups, shape.mlp_width) for shape in geometry.shapes]).ravel()
    least = np.array([(shape.num_kv_groups, shape.mlp_width) for shape in minimum_sizes.least(geometry)]).ravel()
    rank_from_top = np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(len(table))
    protected = np.zeros(len(table), dtype=bool)
    protected[order] = rank_from_top < np.repeat(least, sizes)
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
    """Layers that keep less than ``epsilon`` of their parameters, barest first, while the budget takes them whole."""
    whole = np.array([geometry.layer_params(shape) for shape in geometry.shapes])
    dropped = np.bincount(table.layer, weights=table.cost * ~kept, minlength=geometry.num_layers)
    kept_ratio = 1 - dropped / whole
    touchable = set(range(geometry.num_layers)) - minimum_sizes.frozen_layers(geometry.num_layers)
    spent = sum(whole[index] for index in removed_layers)
    collapsed: list[int] = []
    for index in sorted(touchable - set(removed_layers), key=lambda layer: (kept_ratio[layer], layer)):
        leaves_a_layer = len(removed_layers) + len(collapsed) + 1 < geometry.num_layers
        if kept_ratio[index] >= epsilon or not leaves_a_layer or spent + whole[index] > budget:
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
