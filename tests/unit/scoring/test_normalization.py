"""Normalisations against values computed by hand; scale never decides between layers."""

import numpy as np
import pytest

from conftest import make_tiny
from hgsp.models.geometry import geometry_of
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.methods import METHODS
from hgsp.scoring.names import NORMALIZATIONS
from hgsp.scoring.normalization import NORMALIZERS, normalize

#: Importance of three groups, and the output projection's part of it, which orders them differently.
IMPORTANCE, OUTPUT = np.array([6.0, 1.0, 3.0]), np.array([0.5, 0.7, 0.1])


def score_per_parameter(name, importance, output, params):
    return NORMALIZERS[name](importance, output, params) / params


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [6 / 7, 1 / 7, 3 / 7]),  # per parameter: seven in a group
        ("mean", [1.8, 0.3, 0.9]),  # over the mean importance, 10 / 3
        ("share", [0.6 / 7, 0.1 / 7, 0.3 / 7]),
        ("rank", [3 / 3, 1 / 3, 2 / 3]),
        ("output", [2 / 3, 3 / 3, 1 / 3]),
    ],
)
def test_scores_per_parameter_by_hand(name, expected):
    np.testing.assert_allclose(score_per_parameter(name, IMPORTANCE, OUTPUT, 7), expected, rtol=1e-12)


def test_every_normalization_is_checked_here_and_can_be_configured():
    assert set(NORMALIZERS) == {"none", "mean", "share", "rank", "output"} == set(NORMALIZATIONS) - {"auto"}
    assert {method.normalization for method in METHODS.values()} <= set(NORMALIZERS)


@pytest.mark.parametrize("name", sorted(set(NORMALIZERS) - {"none"}))
def test_the_scale_of_a_block_does_not_matter(name):
    """A layer whose weights are a thousandth of all others scores like the others."""
    expected = NORMALIZERS[name](IMPORTANCE, OUTPUT, 7)
    # one rounding of each float64 division
    np.testing.assert_allclose(NORMALIZERS[name](1e-6 * IMPORTANCE, 1e-6 * OUTPUT, 7), expected, rtol=1e-12)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_block_without_importance_stays_finite(name):
    assert np.isfinite(NORMALIZERS[name](np.zeros(4), np.zeros(4), 7)).all()


def test_equal_ranks_go_to_the_lower_index_first():
    np.testing.assert_array_equal(NORMALIZERS["rank"](np.ones(4), np.ones(4), 8), [2, 4, 6, 8])


def test_each_kind_of_each_layer_is_normalized_by_itself_and_by_its_own_cost():
    """The mean score per parameter is 1 in every block, whatever the cost of a group."""
    geometry = geometry_of(make_tiny("llama-8q4kv"))
    generator = np.random.default_rng(0)
    raw = [
        {"attention": scale * generator.random(4), "mlp": 10 * scale * generator.random(96)}
        for scale in (1.0, 1e3, 1e-3)
    ]
    table = build_group_table(raw, geometry, normalize(raw, geometry, "mean"))
    for layer in range(3):
        for kind in (0, 1):
            block = (table.layer == layer) & (table.kind == kind)
            assert table.score[block].mean() == pytest.approx(1, rel=1e-12)
    np.testing.assert_array_equal(table.importance[:4], raw[0]["attention"])  # the table still shows the raw ones


def test_output_ranks_by_the_output_projection_if_it_is_scored_separately():
    geometry = geometry_of(make_tiny("llama-8q4kv", num_hidden_layers=1))
    layer = {"attention": np.array([1.0, 2, 3, 4]), "mlp": np.arange(96.0)}
    parts = {"attention.output": layer["attention"][::-1], "mlp.output": layer["mlp"][::-1]}
    ((with_parts,), (without,)) = (normalize([each], geometry, "output") for each in (layer | parts, layer))
    assert set(with_parts) == {"attention", "mlp"}
    for kind in with_parts:
        np.testing.assert_array_equal(with_parts[kind], without[kind][::-1])
