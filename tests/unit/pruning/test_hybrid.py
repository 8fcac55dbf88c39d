"""Selection in models with linear attention, which has no groups and leaves with its whole layer alone."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from conftest import make_tiny
from hgsp.errors import InputError
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.pruning.surgery import apply_plan
from hgsp.scoring.groups import build_group_table
from plans import mixed_plan

RULES = ShapeRules(1, 8, allow_empty_blocks=True)


@pytest.fixture(scope="module")
def hybrid():
    return make_tiny("qwen3.5")


@pytest.fixture(scope="module")
def geometry(hybrid):
    return geometry_of(hybrid)


def table_of(geometry, first_layer=1.0):
    """Groups that are the more important the later they are; those of the first layer by a factor."""
    importance = [
        {kind.name: np.arange(1.0, shape.size_of(kind.name) + 1) for kind in shape.kinds} for shape in geometry.shapes
    ]
    importance[0] = {kind: values * first_layer for kind, values in importance[0].items()}
    return build_group_table(importance, geometry)


def test_linear_attention_counts_in_the_parameters(hybrid, geometry):
    for layer, shape in zip(hybrid.model.layers, geometry.shapes, strict=True):
        assert geometry.layer_params(shape) == sum(parameter.numel() for parameter in layer.parameters())
    assert [shape.num_kv_groups for shape in geometry.shapes] == [0, 4, 0]


def test_a_head_owns_the_rows_of_its_gate(hybrid, geometry):
    attention = hybrid.model.layers[1].self_attn
    rows = sum(linear.weight.numel() for linear in (attention.q_proj, attention.k_proj, attention.v_proj))
    assert geometry.kv_group_params == (rows + attention.o_proj.weight.numel()) // 4
    assert geometry.queries_per_kv == 2


def test_a_layer_leaves_whole_with_its_linear_attention(hybrid, geometry):
    whole = geometry.layer_params(geometry.shapes[0])
    plan = select_groups(table_of(geometry, 1e-9), geometry, whole + 5000, ShapeRules(1, 8), epsilon=0.9)
    assert plan.removed_layers == (0,)
    smaller = apply_plan(copy.deepcopy(hybrid), plan)
    removed = geometry.total_params - sum(parameter.numel() for parameter in smaller.parameters())
    assert whole < removed == plan.removed_params <= whole + 5000
    assert smaller.config.layer_types == ["full_attention", "linear_attention"]


def test_everything_but_linear_attention_may_leave(geometry):
    """One layer of KV groups stays too: caches count tokens by it."""
    most = geometry.decoder_params - RULES.smallest_params(geometry)
    plan = select_groups(table_of(geometry), geometry, most, RULES)
    assert plan.removed_params == most
    assert [(len(keep.kv_groups), len(keep.mlp_channels)) for keep in plan.layers] == [(0, 0), (1, 8), (0, 0)]
    assert [keep.linear_attention for keep in plan.layers] == [True, False, True]
    assert plan.removed_layers == ()
    with pytest.raises(InputError, match="expected a ratio of at most 0"):
        budget_for_ratio(geometry, (most + 500) / geometry.total_params, RULES)


def test_frozen_layers_of_linear_attention_do_not_stand_for_kv_groups(geometry):
    rules = replace(RULES, freeze_first=1)
    most = geometry.decoder_params - rules.smallest_params(geometry)
    plan = select_groups(table_of(geometry), geometry, most, rules)
    assert plan.removed_params == most
    assert [len(keep.kv_groups) for keep in plan.layers] == [0, 1, 0]
    assert plan.layers[0].shape == geometry.shapes[0]


def test_plans_say_which_layers_keep_linear_attention(hybrid, tmp_path):
    plan = mixed_plan(hybrid)
    plan.write_json(tmp_path / "plan.json")
    assert PrunePlan.read_json(tmp_path / "plan.json").layers == plan.layers
    stored = json.loads((tmp_path / "plan.json").read_text())["layers"]
    assert [layer.get("linear_attention") for layer in stored] == [True, None, True]


@pytest.mark.parametrize("index", [0, 1])
def test_plans_that_move_linear_attention_are_refused(hybrid, index):
    plan = mixed_plan(hybrid)
    moved = replace(plan.layers[index], linear_attention=not plan.layers[index].linear_attention)
    layers = (*plan.layers[:index], moved, *plan.layers[index + 1 :])
    with pytest.raises(InputError, match="expected a plan for 3 layers like"):
        apply_plan(copy.deepcopy(hybrid), replace(plan, layers=layers))
