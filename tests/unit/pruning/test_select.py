"""Selection on hand-made tables: order, budget to the last channel, minimum sizes, ties and collapse."""

import json

import numpy as np
import pytest

from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.select import kept_mask, select_groups
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.scoring.groups import build_group_table

#: One KV group costs 100, one channel 10; a layer has norms of 4 + 4 parameters; 1000 parameters outside the layers.
GROUP, CHANNEL = 100, 10
SMALLEST = ShapeRules(min_kv_groups=1, min_mlp_width=1)


def geometry_with(*shapes):
    layers = [LayerShape(*shape) for shape in shapes]
    decoder = sum(k * GROUP + m * CHANNEL + 4 * (k > 0) + 4 * (m > 0) for k, m in shapes)
    return Geometry(16, 4, 2, tuple(layers), GROUP, CHANNEL, 4, 4, decoder + 1000)


def table_of(geometry, *scores):
    """``scores``: per layer (scores of KV groups, scores of channels)."""
    importance = [
        {"attention": np.array(attention) * GROUP, "mlp": np.array(mlp) * CHANNEL} for attention, mlp in scores
    ]
    return build_group_table(importance, geometry)


TWO = geometry_with((2, 4), (2, 4))
RISING = table_of(TWO, ([5.0, 1.0], [0.1, 0.2, 0.3, 9.0]), ([6.0, 7.0], [0.4, 2.0, 8.0, 9.0]))


def kept(plan):
    return [(keep.kv_groups, keep.mlp_channels) for keep in plan.layers]


def test_groups_leave_in_ascending_score_over_layers_and_kinds():
    plan = select_groups(RISING, TWO, 140, SMALLEST)
    assert kept(plan) == [((0,), (3,)), ((0, 1), (1, 2, 3))]
    assert plan.removed_params == 140


def test_a_group_that_does_not_fit_is_passed_over_for_cheaper_ones():
    plan = select_groups(RISING, TWO, 69, SMALLEST)
    assert kept(plan) == [((0, 1), (3,)), ((0, 1), (3,))]
    assert plan.removed_params == 60


def test_budget_zero_keeps_everything():
    plan = select_groups(RISING, TWO, 0, SMALLEST)
    assert kept(plan) == [((0, 1), (0, 1, 2, 3))] * 2
    assert plan.removed_params == 0


def test_when_channels_run_out_the_best_of_them_are_exchanged_for_a_kv_group():
    """After all six channels 80 remain, 20 short of a group: two channels return, and the budget is met."""
    plan = select_groups(RISING, TWO, 140 + 100, SMALLEST)
    assert plan.removed_params == 240
    assert kept(plan) == [((0,), (3,)), ((1,), (1, 2, 3))]


def test_an_unreachable_budget_is_spent_as_far_as_shape_rules_allow():
    assert select_groups(RISING, TWO, 95, SMALLEST).removed_params == 60
    assert select_groups(RISING, TWO, 10_000, SMALLEST).removed_params == 2 * (GROUP + 3 * CHANNEL)


def test_shape_rules_keep_the_best_groups_of_a_layer_that_scores_lowest():
    """A layer whose scores are a thousandth of all others keeps its best groups."""
    low = table_of(TWO, ([0.001, 0.002], [0.004, 0.001, 0.003, 0.002]), ([1.0, 2.0], [1.0, 2.0, 3.0, 4.0]))
    plan = select_groups(low, TWO, 260, ShapeRules(min_kv_groups=1, min_mlp_width=2))
    assert plan.layers[0] == LayerKeep((1,), (0, 2))


def test_frozen_layers_are_never_touched():
    three = geometry_with((2, 4), (2, 4), (2, 4))
    flat = table_of(three, *[([0.0, 0.0], [0.0] * 4), ([9.0, 9.0], [9.0] * 4), ([0.0, 0.0], [0.0] * 4)])
    plan = select_groups(flat, three, 130, ShapeRules(1, 1, freeze_first=1, freeze_last=1))
    assert kept(plan) == [((0, 1), (0, 1, 2, 3)), ((1,), (3,)), ((0, 1), (0, 1, 2, 3))]


def test_ties_go_to_the_earlier_layer_then_attention_then_the_lower_index():
    even = table_of(TWO, *[([1.0, 1.0], [1.0] * 4)] * 2)
    assert kept(select_groups(even, TWO, 100, SMALLEST)) == [((1,), (0, 1, 2, 3)), ((0, 1), (0, 1, 2, 3))]
    assert kept(select_groups(even, TWO, 110, SMALLEST)) == [((1,), (1, 2, 3)), ((0, 1), (0, 1, 2, 3))]


@pytest.mark.parametrize("shape_rules", [(0, 1), (1, 0)])
def test_shape_rules_below_one_are_refused(shape_rules):
    """Removing the last group of a block would remove its norm too, which is not in the cost of the group."""
    with pytest.raises(InputError, match="minimum sizes of at least one"):
        ShapeRules(*shape_rules)


def test_without_epsilon_no_layer_is_removed_whole():
    shape_rules = ShapeRules(min_kv_groups=1, min_mlp_width=1)
    plan = select_groups(RISING, TWO, 130, shape_rules, epsilon=None)
    assert plan.removed_layers == ()


def collapsing():
    """Layer 1 scores so low that it would keep its minimum sizes only."""
    geometry = geometry_with((4, 20), (4, 20), (4, 20))
    high, low = ([9.0] * 4, [9.0] * 20), ([0.1] * 4, [0.1] * 20)
    return geometry, table_of(geometry, high, low, high)


def test_a_layer_below_epsilon_is_removed_whole_and_the_rest_of_the_budget_is_spent_elsewhere():
    geometry, table = collapsing()
    whole = geometry.layer_params(geometry.shapes[1])
    plan = select_groups(table, geometry, whole + 50, ShapeRules(1, 2), epsilon=0.3)
    assert plan.removed_layers == (1,)
    assert plan.removed_params == whole + 50, "the layer's norms count, too"


def test_a_layer_is_not_removed_whole_when_the_budget_does_not_reach():
    geometry, table = collapsing()
    whole = geometry.layer_params(geometry.shapes[1])
    plan = select_groups(table, geometry, whole - 1, ShapeRules(1, 2), epsilon=0.9)
    assert plan.removed_layers == ()
    assert plan.layers[1].shape.num_kv_groups >= 1
    assert plan.layers[1].shape.mlp_width >= 2


def test_epsilon_zero_removes_nothing_whole():
    geometry, table = collapsing()
    plan = select_groups(table, geometry, geometry.layer_params(geometry.shapes[1]), ShapeRules(1, 2), epsilon=0.0)
    assert plan.removed_layers == ()


def test_collapse_spares_frozen_layers_and_always_leaves_one():
    geometry, table = collapsing()
    budget = geometry.decoder_params
    frozen = select_groups(table, geometry, budget, ShapeRules(1, 2, freeze_first=2), epsilon=1.0)
    assert frozen.removed_layers in ((), (2,))
    assert select_groups(table, geometry, budget, ShapeRules(1, 2), epsilon=1.0).removed_layers != (0, 1, 2)


def test_ratio_is_of_all_parameters():
    """The documented definition of the ratio includes the embeddings."""
    assert budget_for_ratio(TWO, 0.125, SMALLEST) == int(0.125 * (TWO.decoder_params + 1000))


def test_a_ratio_of_the_decoder_leaves_embeddings_and_head_out():
    assert budget_for_ratio(TWO, 0.125, SMALLEST, "decoder") == int(0.125 * TWO.decoder_params)
    with pytest.raises(InputError, match=r"at most 0\.\d{4} of the decoder layers' parameters") as refusal:
        budget_for_ratio(TWO, 0.999, ShapeRules(1, 2), "decoder")
    highest = float(str(refusal.value).partition("at most ")[2].split()[0])
    assert budget_for_ratio(TWO, highest, ShapeRules(1, 2), "decoder") > 0


def test_a_ratio_out_of_reach_is_refused_with_the_highest_there_is():
    with pytest.raises(InputError, match=r"at most 0\.\d{4} of all parameters") as refusal:
        budget_for_ratio(TWO, 0.9, ShapeRules(1, 2))
    highest = float(str(refusal.value).partition("at most ")[2].split()[0])
    assert budget_for_ratio(TWO, highest, ShapeRules(1, 2)) > 0
    # shown rounded down to four digits, and a budget is a whole number of parameters
    with pytest.raises(InputError):
        budget_for_ratio(TWO, highest + 1e-4 + 1 / TWO.total_params, ShapeRules(1, 2))


def test_kept_mask_marks_the_rows_the_plan_keeps():
    plan = select_groups(RISING, TWO, 140, SMALLEST)
    mask = kept_mask(RISING, plan)
    rows = zip(RISING.layer[mask].tolist(), RISING.kind[mask].tolist(), RISING.group[mask].tolist(), strict=True)
    assert list(rows) == [(0, 0, 0), (0, 1, 3), (1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 2), (1, 1, 3)]
    assert RISING.cost[~mask].sum() == 140


@pytest.mark.parametrize("indices", [(1, 0), (0, 0), (-1, 2)])
def test_plans_with_unsorted_repeated_or_negative_indices_are_refused(indices):
    with pytest.raises(InputError, match="sorted, distinct, non-negative kv_groups in layer 0"):
        PrunePlan((LayerKeep(indices, (0,)),), 10, 0)


def test_a_plan_that_removes_more_than_its_budget_is_refused():
    with pytest.raises(InputError, match="at most 10 parameters"):
        PrunePlan((LayerKeep((0,), (0,)),), 10, 11)


def test_plan_json_is_plain_and_reads_back_equal(tmp_path):
    plan = select_groups(RISING, TWO, 140, SMALLEST, provenance={"seed": 42, "tau": None})
    plan.write_json(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["provenance"] == {"seed": 42, "tau": None}
    assert PrunePlan.read_json(tmp_path / "plan.json") == plan
