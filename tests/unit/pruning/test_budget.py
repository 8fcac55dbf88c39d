"""Budgets stated as targets: the smallest plan that reaches them, and a refusal where none does."""

import numpy as np
import pytest

from hgsp.costs.costs import kv_cache_bytes, weight_bytes
from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.pruning.budget import Budget, Target, budget_for_target
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.scoring.groups import build_group_table

GROUP, CHANNEL, RULES = 100, 10, ShapeRules(1, 1)
SHAPES = (LayerShape(4, 64),) * 3
GEOMETRY = Geometry(16, 4, 2, SHAPES, GROUP, CHANNEL, 4, 4, 3 * (4 * GROUP + 64 * CHANNEL + 8) + 500)
TABLE = build_group_table(
    [
        {"attention": np.random.default_rng(n).random(4) * GROUP, "mlp": np.random.default_rng(n).random(64) * CHANNEL}
        for n in range(3)
    ],
    GEOMETRY,
)


def target_of(name, limit, measure):
    return Target(name, limit, limit, lambda shapes: measure(GEOMETRY, shapes, 2), float)


def plan_for(target, table=TABLE):
    budget = budget_for_target(GEOMETRY, target, RULES)
    return budget.plan(GEOMETRY, lambda params: select_groups(table, GEOMETRY, params, RULES))


@pytest.mark.parametrize("limit", [7000, 5000, 2500])
def test_a_target_of_bytes_is_reached_and_not_passed_by_more_than_a_channel(limit):
    plan = plan_for(target_of("target_bytes", limit, weight_bytes))
    reached = weight_bytes(GEOMETRY, [keep.shape for keep in plan.layers], 2)
    assert limit - 2 * CHANNEL < reached <= limit


@pytest.mark.parametrize("num_groups", [11, 7, 3])
def test_a_target_of_the_kv_cache_takes_kv_groups_alone_when_only_they_cost(num_groups):
    table = TABLE.with_cost(np.tile([16.0, 0.0], (3, 1)))
    plan = plan_for(target_of("target_kv_bytes", num_groups * 16, kv_cache_bytes), table)
    assert sum(len(keep.kv_groups) for keep in plan.layers) == num_groups
    assert all(len(keep.mlp_channels) == 64 for keep in plan.layers)


def test_a_target_that_the_dense_model_reaches_removes_nothing():
    assert plan_for(target_of("target_bytes", 10**6, weight_bytes)).removed_params == 0


def test_a_target_beyond_the_smallest_shapes_is_refused_with_what_they_reach():
    smallest = weight_bytes(GEOMETRY, RULES.smallest_shapes(GEOMETRY), 2)
    with pytest.raises(InputError, match=f"--target_bytes within {smallest}"):
        plan_for(target_of("target_bytes", smallest - 1, weight_bytes))


def test_without_a_target_the_budget_is_spent():
    plan = Budget(300).plan(GEOMETRY, lambda params: select_groups(TABLE, GEOMETRY, params, RULES))
    assert plan.removed_params == 300
