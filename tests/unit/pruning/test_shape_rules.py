"""Rules for shapes: the automatic multiple, blocks of channels, equal layers, and what excludes what."""

from dataclasses import replace

import numpy as np
import pytest

from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.scoring.groups import build_group_table

#: One KV group costs 100, one channel 10; a layer has norms of 4 + 4 parameters.
GROUP, CHANNEL = 100, 10


def geometry_of_layers(num_layers, num_kv=4, width=1024, outside=0):
    decoder = num_layers * (num_kv * GROUP + width * CHANNEL + 8)
    shapes = (LayerShape(num_kv, width),) * num_layers
    return Geometry(16, 4, 2, shapes, GROUP, CHANNEL, 4, 4, decoder + outside)


def table_of(geometry, seed=0):
    generator = np.random.default_rng(seed)
    importance = [
        {"attention": generator.random(shape.num_kv_groups) * GROUP, "mlp": generator.random(shape.mlp_width) * CHANNEL}
        for shape in geometry.shapes
    ]
    return build_group_table(importance, geometry)


def widths(plan):
    return [len(keep.mlp_channels) for keep in plan.layers]


@pytest.mark.parametrize(("width", "multiple"), [(1023, 1), (1024, 64), (14336, 64), (64, 1)])
def test_large_mlps_keep_multiples_of_64_unless_told_otherwise(width, multiple):
    geometry = geometry_of_layers(2, width=width)
    assert ShapeRules().multiple_for(geometry) == multiple
    assert ShapeRules(mlp_multiple_of=1).multiple_for(geometry) == 1
    assert ShapeRules(mlp_multiple_of=256).multiple_for(geometry) == 256


def test_uniform_plans_use_a_smaller_multiple_where_a_step_of_all_layers_is_large():
    """Sixteen channels of all layers are 160 * 30 of 319,440 + 170,000 parameters, 1 %."""
    geometry = geometry_of_layers(30, width=1024, outside=170_000)
    multiple = ShapeRules(uniform=True).multiple_for(geometry)
    assert multiple == 16
    assert multiple * CHANNEL * 30 <= 0.01 * geometry.total_params < 2 * multiple * CHANNEL * 30


@pytest.mark.parametrize("multiple", [16, 64, 128])
def test_blocks_of_channels_are_ranked_by_their_mean_and_leave_whole(multiple):
    geometry = geometry_of_layers(3)
    table = table_of(geometry)
    budget = geometry.decoder_params // 3
    plan = select_groups(table, geometry, budget, ShapeRules(mlp_multiple_of=multiple))
    assert all(width % multiple == 0 for width in widths(plan))
    assert 0 <= budget - plan.removed_params < multiple * CHANNEL
    for layer, keep in enumerate(plan.layers):
        score = table.score[(table.layer == layer) & (table.kind == 1)]
        kept = np.isin(np.arange(len(score)), keep.mlp_channels)
        assert score[kept].min() >= score[~kept].max()


def test_the_first_block_brings_an_odd_width_to_a_multiple():
    geometry = geometry_of_layers(1, width=1000)
    table, rules = table_of(geometry), ShapeRules(min_kv_groups=4, mlp_multiple_of=64)
    assert widths(select_groups(table, geometry, 39 * CHANNEL, rules)) == [1000]
    plan = select_groups(table, geometry, 40 * CHANNEL, rules)
    assert widths(plan) == [960]


def test_minimum_widths_are_rounded_up_to_the_multiple():
    geometry = geometry_of_layers(2)
    rules = ShapeRules(min_mlp_width=100, mlp_multiple_of=64)
    assert {shape.mlp_width for shape in rules.smallest_shapes(geometry)} == {128}
    assert widths(select_groups(table_of(geometry), geometry, 10**9, rules)) == [128, 128]


def test_uniform_plans_choose_heads_or_channels_by_the_scores():
    """The same budget takes KV groups where those score low, and channels where they do."""
    geometry = geometry_of_layers(3, width=64)
    budget = 3 * GROUP
    for low, expected in (("attention", LayerShape(3, 64)), ("mlp", LayerShape(4, 54))):
        importance = [
            {
                "attention": np.full(4, GROUP * (0.1 if low == "attention" else 1.0)),
                "mlp": np.full(64, CHANNEL * (0.1 if low == "mlp" else 1.0)),
            }
            for _ in geometry.shapes
        ]
        plan = select_groups(build_group_table(importance, geometry), geometry, budget, ShapeRules(1, 1, uniform=True))
        assert {keep.shape for keep in plan.layers} == {expected}
        assert plan.removed_params == budget


def test_equal_kv_groups_leave_the_widths_free():
    geometry = geometry_of_layers(4, width=256)
    plan = select_groups(
        table_of(geometry), geometry, geometry.decoder_params // 3, ShapeRules(1, 16, equal_kv_groups=True)
    )
    assert len({len(keep.kv_groups) for keep in plan.layers}) == 1
    assert len(set(widths(plan))) > 1


def test_a_block_that_costs_nothing_to_lose_leaves_with_its_norm():
    geometry = geometry_of_layers(2, width=64)
    importance = [
        {"attention": np.full(4, 1e-9 if layer else 1.0), "mlp": np.full(64, 10.0)}
        for layer in range(geometry.num_layers)
    ]
    table, cost = build_group_table(importance, geometry), 4 * GROUP + geometry.attention_extra_params
    rules = ShapeRules(1, 1, allow_empty_blocks=True)
    assert [len(keep.kv_groups) for keep in select_groups(table, geometry, cost, rules).layers] == [4, 0]
    for spent, allowed in ((cost - 1, True), (cost, False)):
        plan = select_groups(table, geometry, spent, replace(rules, allow_empty_blocks=allowed))
        assert len(plan.layers[1].kv_groups) == 1


def test_a_layer_that_keeps_both_blocks_remains_whatever_the_budget():
    geometry = geometry_of_layers(3, width=64)
    rules = ShapeRules(1, 1, allow_empty_blocks=True)
    plan = select_groups(table_of(geometry), geometry, 10**9, rules)
    assert [keep.shape for keep in plan.layers].count(LayerShape(1, 1)) == 1
    assert [keep.shape for keep in plan.layers].count(LayerShape(0, 0)) == 2
    assert geometry.decoder_params - plan.removed_params == rules.smallest_params(geometry)


def test_ratios_out_of_reach_count_what_may_leave_whole():
    geometry = geometry_of_layers(2, width=64)
    ratio = 0.9
    with pytest.raises(InputError, match="at most 0\\."):
        budget_for_ratio(geometry, ratio, ShapeRules(2, 32))
    assert budget_for_ratio(geometry, 0.5, ShapeRules(2, 32, allow_empty_blocks=True)) == geometry.total_params // 2


@pytest.mark.parametrize(
    "rules",
    [
        {"min_kv_groups": 0},
        {"min_mlp_width": 0},
        {"mlp_multiple_of": 0},
        {"uniform": True, "freeze_first": 1},
        {"equal_kv_groups": True, "freeze_last": 1},
        {"uniform": True, "allow_empty_blocks": True},
    ],
    ids=str,
)
def test_rules_that_make_no_sense_are_refused(rules):
    with pytest.raises(InputError, match="expected"):
        ShapeRules(**rules)


def test_equal_layers_of_a_model_whose_layers_differ_are_refused():
    geometry = replace(geometry_of_layers(2), shapes=(LayerShape(4, 1024), LayerShape(3, 1024)))
    with pytest.raises(InputError, match="same sizes"):
        select_groups(table_of(geometry), geometry, 100, ShapeRules(uniform=True))
