"""The pruning decision: one ranking under one budget gives the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hgsp.models.geometry import Geometry
from hgsp.pipeline.recipes import Recipe
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import kept_mask, select_groups
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.reconstruction.reconstruct import plan_for
from hgsp.scoring.groups import GroupTable
from hgsp.scoring.scores import RankingOptions, Scores


@dataclass(frozen=True)
class PruningDecision:
    """A plan with the ranked table it was selected from, each layer's H-GSP mode, and the findings of a search."""

    table: GroupTable
    plan: PrunePlan
    modes: tuple[str, ...]
    searched: Mapping[str, Any] | None = None


def decide(
    scores: Scores,
    geometry: Geometry,
    budget_params: int,
    recipe: Recipe,
    shape_rules: ShapeRules,
    earlier: PrunePlan | None = None,
) -> PruningDecision:
    """Rank all groups and select those that leave under the budget. Takes seconds and no weights.

    Groups that an ``earlier`` round dropped score 0, whatever a normalization makes of their importance of 0.

    Raises:
        InputError: a temperature above 0 and scores without influence.
    """
    ranking = RankingOptions(recipe.score_normalization, recipe.temperature, recipe.tau, recipe.depth_slope)
    table, modes = scores.ranked(geometry, ranking)
    if earlier is not None:
        table = table.zeroed_unless(kept_mask(table, earlier))
    provenance = {
        **scores.provenance,
        "score_normalization": ranking.normalization_of(scores.method),
        "temperature": recipe.temperature,
        "tau": "inf" if recipe.tau == math.inf else recipe.tau,  # JSON has no infinity
        "epsilon": recipe.collapse_epsilon,
        "depth_slope": recipe.depth_slope,
        "rounds": recipe.rounds,
    }
    plan = select_groups(table, geometry, budget_params, shape_rules, recipe.collapse_epsilon, provenance)
    return PruningDecision(table, plan_for(recipe.reconstruct, plan), modes)
