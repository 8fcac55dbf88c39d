"""The table of all groups: order, costs, scores, CSV, and refusal of values that are not finite."""

import csv

import numpy as np
import pytest

from hgsp.errors import NumericalError
from hgsp.models.geometry import geometry_of
from hgsp.scoring.groups import ATTENTION, CSV_COLUMNS, MLP, build_group_table, depth_profile


def random_importance(geometry, seed=0):
    random = np.random.default_rng(seed)
    return [{"attention": random.random(s.num_kv_groups), "mlp": random.random(s.mlp_width)} for s in geometry.shapes]


@pytest.fixture
def geometry(make):
    return geometry_of(make("qwen2-14q2kv"))


def test_costs_add_up_to_all_prunable_parameters(tiny):
    """sum(cost) is the number of parameters of the decoder without norms and output biases, counted on the modules."""
    geometry = geometry_of(tiny)
    table = build_group_table(random_importance(geometry), geometry)
    stays = ("norm.weight", "o_proj.bias", "down_proj.bias")
    counted = sum(p.numel() for n, p in tiny.model.layers.named_parameters() if not n.endswith(stays))
    # layer norms end in "layernorm.weight", which ends in "norm.weight"
    assert table.cost.sum() == counted


def test_rows_are_ordered_by_layer_attention_first_then_index(geometry):
    importance = random_importance(geometry)
    table = build_group_table(importance, geometry)
    expected = [
        (layer, kind, group)
        for layer, shape in enumerate(geometry.shapes)
        for kind, size in ((ATTENTION, shape.num_kv_groups), (MLP, shape.mlp_width))
        for group in range(size)
    ]
    assert list(zip(table.layer.tolist(), table.kind.tolist(), table.group.tolist(), strict=True)) == expected
    np.testing.assert_array_equal(
        table.importance, np.concatenate([layer[kind] for layer in importance for kind in ("attention", "mlp")])
    )


def test_score_is_importance_over_cost_times_prior(geometry):
    table = build_group_table(random_importance(geometry), geometry)
    prior = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    with_prior = table.with_prior(prior)
    for row in (0, 2, 100, len(table) - 1):
        expected = table.importance[row] / table.cost[row] * prior[table.layer[row], table.kind[row]]
        # one multiplication more or less: the last bit may differ
        assert with_prior.score[row] == pytest.approx(expected, rel=1e-15)
    assert (table.prior == 1).all()
    assert (table.score == table.base_score).all()


@pytest.mark.parametrize("kind", [ATTENTION, MLP])
def test_a_depth_profile_is_a_power_of_the_depth_of_mean_zero_for_one_kind(kind):
    expected = {0: [1, 1, 1, 1, 1], 1: [-1, -0.5, 0, 0.5, 1], 2: [0.5, -0.25, -0.5, -0.25, 0.5]}
    for power, values in expected.items():
        profile_LK = depth_profile(5, kind, power)
        np.testing.assert_allclose(profile_LK[:, kind], values, rtol=1e-15)
        assert not profile_LK[:, 1 - kind].any()
    assert not depth_profile(1, kind, 1).any()


def test_normalized_importances_change_the_score_and_not_the_importance(geometry):
    importance = random_importance(geometry)
    halved = [{kind: values / 2 for kind, values in layer.items()} for layer in importance]
    table = build_group_table(importance, geometry, halved)
    np.testing.assert_array_equal(table.base_score, table.importance / 2 / table.cost)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_importance_that_is_not_finite_stops_with_layer_and_kind(geometry, value):
    importance = random_importance(geometry)
    importance[2]["mlp"][7] = value
    with pytest.raises(NumericalError, match="importance of 1 groups is not finite, first in layer 2, mlp"):
        build_group_table(importance, geometry)


def test_a_prior_that_is_not_finite_stops(geometry):
    table = build_group_table(random_importance(geometry), geometry)
    with pytest.raises(NumericalError, match=r"prior .* layer 1, attention"):
        table.with_prior(np.array([[1.0, 1.0], [np.nan, 1.0], [1.0, 1.0]]))


def test_csv_has_the_promised_columns_and_the_exact_values(geometry, tmp_path):
    table = build_group_table(random_importance(geometry), geometry).with_prior(np.full((3, 2), 1.5))
    kept = np.arange(len(table)) % 3 > 0
    table.write_csv(tmp_path / "table.csv", kept)
    with (tmp_path / "table.csv").open(newline="") as source:
        header, *rows = csv.reader(source)
    assert tuple(header) == CSV_COLUMNS
    assert ",".join(header) == "layer,kind,group,importance,cost,base_score,prior,score,kept"
    assert {row[1] for row in rows} == {"attention", "mlp"}
    numbers = [[*row[:1], *row[2:]] for row in rows]
    columns = (table.layer, table.group, table.importance, table.cost, table.base_score, table.prior, table.score, kept)
    # CSV holds the shortest text that reads back as the same float64: equal, not close
    np.testing.assert_array_equal(np.array(numbers, dtype=np.float64), np.stack(columns, axis=1).astype(np.float64))


def test_a_table_prints_on_one_line(geometry):
    table = build_group_table(random_importance(geometry), geometry)
    assert repr(table) == f"GroupTable({len(table)} groups in 3 layers, {table.cost.sum():,} parameters)"
