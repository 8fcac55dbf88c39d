"""The pruning decision: one ranking under one budget gives the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hgsp.costs.costs import CostOptions, params
from hgsp.models.geometry import Geometry
from hgsp.pipeline.recipes import Recipe
from hgsp.pruning.budget import Budget
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import BlockIndex, kept_mask, select_groups
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.reconstruction.reconstruct import plan_for
from hgsp.scoring.groups import Floats, GroupTable
from hgsp.scoring.scores import RankingOptions, Scores


@dataclass(frozen=True)
class SelectionOptions:
    """How much leaves, in which shapes, and the unit that the ranking counts in.

    Args:
        cost: a key of ``COST_NAMES``.
        group_costs: of one group of every block (attention, MLP) in that unit, [L, 2]; None counts parameters.
        block_costs: saved when a whole block leaves, [L, 2]; None is that of its groups.
        emptied: blocks (layer, ``ATTENTION`` or ``MLP``) that leave first.
    """

    budget: Budget
    shape_rules: ShapeRules = field(default_factory=ShapeRules)
    cost: str = "params"
    group_costs: Floats | None = None
    block_costs: Floats | None = None
    emptied: frozenset[BlockIndex] = frozenset()

    def costs_of_blocks(self, geometry: Geometry) -> Floats:
        """Return the cost saved when a whole block leaves, [L, 2]."""
        if self.block_costs is not None:
            return self.block_costs
        sizes_LK = np.array([shape.block_sizes for shape in geometry.shapes], dtype=np.float64)
        return sizes_LK * (params(geometry, CostOptions()) if self.group_costs is None else self.group_costs)


@dataclass(frozen=True)
class PruningDecision:
    """A plan with the ranked table it was selected from, each layer's H-GSP mode, and the findings of searches."""

    table: GroupTable
    plan: PrunePlan
    modes: tuple[str, ...]
    searched: Mapping[str, Any] | None = None
    whole_blocks: Mapping[str, Any] | None = None


def decide(
    scores: Scores,
    geometry: Geometry,
    selection: SelectionOptions,
    recipe: Recipe,
    earlier: PrunePlan | None = None,
    share: tuple[int, int] = (1, 1),
) -> PruningDecision:
    """Rank all groups and select those that leave under the budget. Takes seconds and no weights.

    Args:
        earlier: plan of an earlier round; its dropped groups score 0, whatever a normalization makes of their
            importance of 0.
        share: of the budget to spend, as numerator and denominator.

    Raises:
        InputError: a temperature above 0 and scores without influence, or a target out of reach.
    """
    ranking = RankingOptions(
        recipe.score_normalization, recipe.temperature, recipe.tau, recipe.depth_slope, recipe.attention_slope
    )
    table, modes = scores.ranked(geometry, ranking)
    if selection.group_costs is not None:
        table = table.with_cost(selection.group_costs)
    if earlier is not None:
        table = table.zeroed_unless(kept_mask(table, earlier))
    provenance = {
        **scores.provenance,
        "score_normalization": ranking.normalization_of(scores.method),
        "temperature": recipe.temperature,
        "tau": "inf" if recipe.tau == math.inf else recipe.tau,  # JSON has no infinity
        "epsilon": recipe.collapse_epsilon,
        "depth_slope": recipe.depth_slope,
        "attention_slope": recipe.attention_slope,
        "rounds": recipe.rounds,
        "cost": selection.cost,
        "mlp_multiple_of": selection.shape_rules.multiple_for(geometry),
    }
    plan = select_within(table, geometry, selection, recipe.collapse_epsilon, provenance, share)
    return PruningDecision(table, plan_for(recipe.reconstruct, plan), modes)


def select_within(
    table: GroupTable,
    geometry: Geometry,
    selection: SelectionOptions,
    epsilon: float | None,
    provenance: Mapping[str, Any],
    share: tuple[int, int] = (1, 1),
) -> PrunePlan:
    """Select the plan of a share of the budget; arguments as for ``decide`` and ``select_groups``.

    Raises:
        InputError: a target out of reach.
    """

    def select(budget_params: int) -> PrunePlan:
        return select_groups(
            table, geometry, budget_params, selection.shape_rules, epsilon, provenance, selection.emptied
        )

    part, whole = share
    if selection.budget.target is None:
        return select(selection.budget.params * part // whole)
    plan = selection.budget.plan(geometry, select)
    return plan if part == whole else select(plan.removed_params * part // whole)
