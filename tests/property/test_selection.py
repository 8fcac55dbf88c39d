"""Laws of selection for any table, budget and minimum sizes."""

from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hgsp.models.geometry import Geometry, LayerShape
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.select import MinimumSizes, kept_mask, select_groups
from hgsp.scoring.groups import ATTENTION, MLP, GroupTable, build_group_table


def num_unprotected(geometry, minimum_sizes):
    """Numbers of KV groups and channels that may be removed."""
    pairs = list(zip(geometry.shapes, minimum_sizes.smallest_shapes(geometry), strict=True))
    return sum(s.num_kv_groups - f.num_kv_groups for s, f in pairs), sum(s.mlp_width - f.mlp_width for s, f in pairs)


@st.composite
def problems(draw):
    """Geometry, table, budget and minimum sizes. Scores repeat often, so that ties matter; costs are small and odd."""
    shapes = draw(st.lists(st.builds(LayerShape, st.integers(1, 4), st.integers(1, 12)), min_size=1, max_size=4))
    group, channel = draw(st.integers(1, 60)), draw(st.integers(1, 9))
    extra = draw(st.integers(0, 5))
    decoder = sum(s.num_kv_groups * group + s.mlp_width * channel + 2 * extra for s in shapes)
    geometry = Geometry(8, 4, 2, tuple(shapes), group, channel, extra, extra, decoder + 50)
    score = st.sampled_from([0.0, 1e-9, 0.5, 1.0, 1.0, 3.0]) | st.floats(0, 1e6)
    importance = [
        {
            "attention": np.array(draw(st.lists(score, min_size=s.num_kv_groups, max_size=s.num_kv_groups))),
            "mlp": np.array(draw(st.lists(score, min_size=s.mlp_width, max_size=s.mlp_width))),
        }
        for s in shapes
    ]
    minimum_sizes = MinimumSizes(
        draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(0, 1)), draw(st.integers(0, 1))
    )
    if minimum_sizes.freeze_first + minimum_sizes.freeze_last > len(shapes):
        minimum_sizes = replace(minimum_sizes, freeze_first=0)
    budget = draw(st.integers(0, decoder))
    if draw(st.booleans()):  # the exact cost of a set of unprotected groups, which the greedy order may miss
        groups, channels = num_unprotected(geometry, minimum_sizes)
        budget = draw(st.integers(0, groups)) * group + draw(st.integers(0, channels)) * channel
    return geometry, build_group_table(importance, geometry), budget, minimum_sizes


epsilons = st.none() | st.floats(0, 1)


@given(problems(), epsilons)
def test_spent_is_at_most_the_budget_and_is_what_the_shapes_say(problem, epsilon):
    geometry, table, budget, minimum_sizes = problem
    plan = select_groups(table, geometry, budget, minimum_sizes, epsilon)
    left = sum(geometry.layer_params(keep.shape) for keep in plan.layers)
    assert plan.removed_params == geometry.decoder_params - left
    assert 0 <= plan.removed_params <= budget


@given(problems())
def test_shortfall_is_less_than_the_cheapest_kept_unprotected_group(problem):
    geometry, table, budget, minimum_sizes = problem
    plan = select_groups(table, geometry, budget, minimum_sizes)
    kept = kept_mask(table, plan)
    for layer, smallest in enumerate(minimum_sizes.smallest_shapes(geometry)):
        for kind, minimum in ((ATTENTION, smallest.num_kv_groups), (MLP, smallest.mlp_width)):
            mine = (table.layer == layer) & (table.kind == kind)
            if (kept & mine).sum() > minimum:
                assert budget - plan.removed_params < table.cost[mine][0]


@given(problems())
def test_the_budget_is_met_to_within_one_channel_if_minimum_sizes_allow_it(problem):
    """The removed size against every combination of removed KV groups and channels."""
    geometry, table, budget, minimum_sizes = problem
    groups, channels = num_unprotected(geometry, minimum_sizes)
    group_params, channel_params = geometry.kv_group_params, geometry.mlp_channel_params
    sums = {a * group_params + m * channel_params for a, m in product(range(groups + 1), range(channels + 1))}
    best = max(total for total in sums if total <= budget)
    removed = select_groups(table, geometry, budget, minimum_sizes).removed_params
    assert removed == best or budget - removed < channel_params


@given(problems(), epsilons)
def test_minimum_sizes_and_frozen_layers_are_kept_unless_a_layer_leaves_whole(problem, epsilon):
    """Minimum sizes hold, and a frozen layer never leaves."""
    geometry, table, budget, minimum_sizes = problem
    plan = select_groups(table, geometry, budget, minimum_sizes, epsilon)
    past_free = geometry.num_layers - minimum_sizes.freeze_last
    for layer, (keep, smallest) in enumerate(zip(plan.layers, minimum_sizes.smallest_shapes(geometry), strict=True)):
        if layer in plan.removed_layers:
            assert epsilon is not None
            assert minimum_sizes.freeze_first <= layer < past_free
        else:
            assert keep.shape.num_kv_groups >= smallest.num_kv_groups
            assert keep.shape.mlp_width >= smallest.mlp_width
    assert len(plan.removed_layers) < geometry.num_layers


@given(problems())
def test_in_every_block_the_best_scores_stay(problem):
    """Within one layer and kind, no kept group scores lower than a dropped one."""
    geometry, table, budget, minimum_sizes = problem
    kept = kept_mask(table, select_groups(table, geometry, budget, minimum_sizes))
    for layer, kind in product(range(geometry.num_layers), (ATTENTION, MLP)):
        mine = (table.layer == layer) & (table.kind == kind)
        dropped, stays = table.score[mine & ~kept], table.score[mine & kept]
        assert not len(dropped) or not len(stays) or dropped.max() <= stays.min()


@given(problems(), epsilons, st.integers(0, 2**32 - 1))
def test_order_of_rows_is_irrelevant(problem, epsilon, seed):
    geometry, table, budget, minimum_sizes = problem
    rows = np.random.default_rng(seed).permutation(len(table))
    shuffled = GroupTable(*(getattr(table, item.name)[rows] for item in fields(GroupTable)))
    expected = select_groups(table, geometry, budget, minimum_sizes, epsilon)
    assert select_groups(shuffled, geometry, budget, minimum_sizes, epsilon) == expected


@given(problems(), st.floats(0.001, 1000))
def test_scaling_all_scores_changes_nothing(problem, factor):
    geometry, table, budget, minimum_sizes = problem
    scaled = replace(table, score=table.score * factor)
    # underflow or rounding may create or break ties; where the order is the same, so is the plan
    order = np.lexsort((np.arange(len(table)), table.score))
    if (np.diff(scaled.score[order]) == 0).tolist() == (np.diff(table.score[order]) == 0).tolist():
        assert select_groups(scaled, geometry, budget, minimum_sizes) == select_groups(
            table, geometry, budget, minimum_sizes
        )


@given(problems())
def test_a_larger_budget_removes_at_least_as_much(problem):
    geometry, table, budget, minimum_sizes = problem
    smaller = select_groups(table, geometry, budget // 2, minimum_sizes)
    assert smaller.removed_params <= select_groups(table, geometry, budget, minimum_sizes).removed_params


@given(problems())
def test_kept_mask_and_plan_say_the_same(problem):
    geometry, table, budget, minimum_sizes = problem
    plan = select_groups(table, geometry, budget, minimum_sizes)
    kept = kept_mask(table, plan)
    listed = {
        (layer, kind, group)
        for layer, keep in enumerate(plan.layers)
        for kind, groups in ((ATTENTION, keep.kv_groups), (MLP, keep.mlp_channels))
        for group in groups
    }
    marked = zip(table.layer[kept].tolist(), table.kind[kept].tolist(), table.group[kept].tolist(), strict=True)
    assert set(marked) == listed
    assert table.cost[~kept].sum() == plan.removed_params


sorted_indices = st.lists(st.integers(0, 50), unique=True).map(lambda found: tuple(sorted(found)))
json_values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(
    st.lists(st.builds(LayerKeep, sorted_indices, sorted_indices), max_size=5).map(tuple),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.dictionaries(st.text(), json_values | st.lists(json_values), max_size=4),
)
def test_plans_read_back_from_json_as_they_were(layers, one, other, provenance):
    plan = PrunePlan(layers, max(one, other), min(one, other), provenance)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        plan.write_json(path)
        assert PrunePlan.read_json(path) == plan
