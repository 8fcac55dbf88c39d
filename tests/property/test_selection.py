"""Laws of selection for any table, budget and minimum sizes."""

from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hgsp.console.portable_paths import portable
from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.select import kept_mask, select_groups
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.scoring.groups import ATTENTION, MLP, GroupTable, build_group_table


def num_unprotected(geometry, shape_rules):
    """Numbers of KV groups and channels that may be removed."""
    pairs = list(zip(geometry.shapes, shape_rules.smallest_shapes(geometry), strict=True))
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
    shape_rules = ShapeRules(
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
        draw(st.integers(0, 1)),
        draw(st.integers(0, 1)),
        mlp_multiple_of=draw(st.sampled_from([1, 1, 2, 3, 5])),
    )
    if shape_rules.freeze_first + shape_rules.freeze_last > len(shapes):
        shape_rules = replace(shape_rules, freeze_first=0)
    budget = draw(st.integers(0, decoder))
    if draw(st.booleans()):  # the exact cost of a set of unprotected groups, which the greedy order may miss
        groups, channels = num_unprotected(geometry, shape_rules)
        budget = draw(st.integers(0, groups)) * group + draw(st.integers(0, channels)) * channel
    return geometry, build_group_table(importance, geometry), budget, shape_rules


epsilons = st.none() | st.floats(0, 1)


@given(problems(), epsilons)
def test_spent_is_at_most_the_budget_and_is_what_the_shapes_say(problem, epsilon):
    geometry, table, budget, shape_rules = problem
    plan = select_groups(table, geometry, budget, shape_rules, epsilon)
    left = sum(geometry.layer_params(keep.shape) for keep in plan.layers)
    assert plan.removed_params == geometry.decoder_params - left
    assert 0 <= plan.removed_params <= budget


@given(problems())
def test_shortfall_is_less_than_the_cheapest_kept_unprotected_group(problem):
    geometry, table, budget, shape_rules = problem
    plan = select_groups(table, geometry, budget, shape_rules)
    kept = kept_mask(table, plan)
    for layer, smallest in enumerate(shape_rules.smallest_shapes(geometry)):
        for kind, minimum in ((ATTENTION, smallest.num_kv_groups), (MLP, smallest.mlp_width)):
            mine = (table.layer == layer) & (table.kind == kind)
            if (kept & mine).sum() > minimum:
                unit = 1 if kind == ATTENTION else shape_rules.mlp_multiple_of
                assert budget - plan.removed_params < unit * table.cost[mine][0]


@given(problems())
def test_the_budget_is_met_to_within_one_channel_if_shape_rules_allow_it(problem):
    """The removed size against every combination of removed KV groups and channels."""
    geometry, table, budget, shape_rules = problem
    groups, channels = num_unprotected(geometry, shape_rules)
    group_params, channel_params = geometry.kv_group_params, geometry.mlp_channel_params
    sums = {a * group_params + m * channel_params for a, m in product(range(groups + 1), range(channels + 1))}
    best = max(total for total in sums if total <= budget)
    removed = select_groups(table, geometry, budget, shape_rules).removed_params
    assert removed == best or budget - removed < channel_params * shape_rules.mlp_multiple_of


@given(problems(), epsilons)
def test_a_layer_that_loses_channels_is_left_with_a_multiple(problem, epsilon):
    geometry, table, budget, shape_rules = problem
    plan = select_groups(table, geometry, budget, shape_rules, epsilon)
    for keep, dense in zip(plan.layers, geometry.shapes, strict=True):
        width = keep.shape.mlp_width
        assert width == dense.mlp_width or width % shape_rules.mlp_multiple_of == 0


@given(problems(), epsilons)
def test_blocks_that_may_be_emptied_leave_with_their_norms_and_one_layer_keeps_both(problem, epsilon):
    geometry, table, budget, shape_rules = problem
    shape_rules = replace(shape_rules, allow_empty_blocks=True)
    plan = select_groups(table, geometry, budget, shape_rules, epsilon)
    assert plan.removed_params <= budget
    assert any(keep.kv_groups and keep.mlp_channels for keep in plan.layers)
    for layer in shape_rules.frozen_layers(geometry.num_layers):
        assert plan.layers[layer].shape == geometry.shapes[layer]
    for keep, smallest in zip(plan.layers, shape_rules.smallest_shapes(geometry), strict=True):
        assert keep.shape.num_kv_groups in (0, *range(smallest.num_kv_groups, 5))
        assert keep.shape.mlp_width in (0, *range(smallest.mlp_width, 13))


@given(problems(), st.data())
def test_emptied_blocks_are_removed_within_the_budget(problem, data):
    geometry, table, budget, shape_rules = problem
    blocks = st.tuples(st.integers(1, geometry.num_layers), st.sampled_from([ATTENTION, MLP]))
    emptied = {(layer - 1, kind) for layer, kind in data.draw(st.sets(blocks, max_size=3)) if layer > 1}
    shape_rules = replace(shape_rules, freeze_first=0, freeze_last=0)
    try:
        plan = select_groups(table, geometry, budget, shape_rules, emptied=emptied)
    except InputError:
        lost = [
            geometry.attention_extra_params + geometry.shapes[layer].num_kv_groups * geometry.kv_group_params
            if kind == ATTENTION
            else geometry.mlp_extra_params + geometry.shapes[layer].mlp_width * geometry.mlp_channel_params
            for layer, kind in emptied
        ]
        assert sum(lost) > budget
        return
    assert plan.removed_params <= budget
    for layer, keep in enumerate(plan.layers):
        assert (keep.shape.num_kv_groups == 0) == ((layer, ATTENTION) in emptied)
        assert (keep.shape.mlp_width == 0) == ((layer, MLP) in emptied)


@given(problems(), st.booleans())
def test_equal_layers_are_equal_and_keep_to_the_budget(problem, uniform):
    """The shortfall is less than one block of channels in every layer, unless minimum sizes are in the way."""
    geometry, _, budget, shape_rules = problem
    geometry = replace(geometry, shapes=geometry.shapes[:1] * geometry.num_layers)
    scores = np.random.default_rng(budget)
    importance = [
        {"attention": scores.random(s.num_kv_groups), "mlp": scores.random(s.mlp_width)} for s in geometry.shapes
    ]
    table = build_group_table(importance, geometry)
    shape_rules = replace(shape_rules, freeze_first=0, freeze_last=0, uniform=uniform, equal_kv_groups=True)
    plan = select_groups(table, geometry, budget, shape_rules)
    assert plan.removed_params <= budget
    assert len({keep.shape.num_kv_groups for keep in plan.layers}) == 1
    smallest = shape_rules.smallest_shapes(geometry)
    if uniform:
        assert len({keep.shape.mlp_width for keep in plan.layers}) == 1
    step = shape_rules.mlp_multiple_of * geometry.mlp_channel_params * (geometry.num_layers if uniform else 1)
    if all(keep.shape.mlp_width > small.mlp_width for keep, small in zip(plan.layers, smallest, strict=True)):
        assert budget - plan.removed_params < 2 * step


@given(problems(), epsilons)
def test_shape_rules_and_frozen_layers_are_kept_unless_a_layer_leaves_whole(problem, epsilon):
    """Minimum sizes hold, and a frozen layer never leaves."""
    geometry, table, budget, shape_rules = problem
    plan = select_groups(table, geometry, budget, shape_rules, epsilon)
    past_free = geometry.num_layers - shape_rules.freeze_last
    for layer, (keep, smallest) in enumerate(zip(plan.layers, shape_rules.smallest_shapes(geometry), strict=True)):
        if layer in plan.removed_layers:
            assert epsilon is not None
            assert shape_rules.freeze_first <= layer < past_free
        else:
            assert keep.shape.num_kv_groups >= smallest.num_kv_groups
            assert keep.shape.mlp_width >= smallest.mlp_width
    assert len(plan.removed_layers) < geometry.num_layers


@given(problems())
def test_in_every_block_the_best_scores_stay(problem):
    """Within one layer and kind, no kept group scores lower than a dropped one."""
    geometry, table, budget, shape_rules = problem
    kept = kept_mask(table, select_groups(table, geometry, budget, shape_rules))
    for layer, kind in product(range(geometry.num_layers), (ATTENTION, MLP)):
        mine = (table.layer == layer) & (table.kind == kind)
        dropped, stays = table.score[mine & ~kept], table.score[mine & kept]
        assert not len(dropped) or not len(stays) or dropped.max() <= stays.min()


@given(problems(), epsilons, st.integers(0, 2**32 - 1))
def test_order_of_rows_is_irrelevant(problem, epsilon, seed):
    geometry, table, budget, shape_rules = problem
    rows = np.random.default_rng(seed).permutation(len(table))
    arrays = [getattr(table, item.name)[rows] for item in fields(GroupTable) if item.name != "channel_order"]
    shuffled = GroupTable(*arrays)
    expected = select_groups(table, geometry, budget, shape_rules, epsilon)
    assert select_groups(shuffled, geometry, budget, shape_rules, epsilon) == expected


@given(problems(), st.floats(0.001, 1000))
def test_scaling_all_scores_changes_nothing(problem, factor):
    geometry, table, budget, shape_rules = problem
    shape_rules = replace(shape_rules, mlp_multiple_of=1)  # means of rounded products may change the order of blocks
    scaled = replace(table, score=table.score * factor)
    # underflow or rounding may create or break ties; where the order is the same, so is the plan
    order = np.lexsort((np.arange(len(table)), table.score))
    if (np.diff(scaled.score[order]) == 0).tolist() == (np.diff(table.score[order]) == 0).tolist():
        assert select_groups(scaled, geometry, budget, shape_rules) == select_groups(
            table, geometry, budget, shape_rules
        )


@given(problems())
def test_a_larger_budget_removes_at_least_as_much(problem):
    geometry, table, budget, shape_rules = problem
    smaller = select_groups(table, geometry, budget // 2, shape_rules)
    assert smaller.removed_params <= select_groups(table, geometry, budget, shape_rules).removed_params


@given(problems())
def test_kept_mask_and_plan_say_the_same(problem):
    geometry, table, budget, shape_rules = problem
    plan = select_groups(table, geometry, budget, shape_rules)
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
numbers = st.integers(1 - 2**63, 2**63 - 1) | st.floats(-1e300, 1e300)
json_values = st.none() | st.booleans() | numbers | st.text()


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
        assert PrunePlan.read_json(path) == replace(plan, provenance=portable(provenance))
