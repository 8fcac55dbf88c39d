"""Axes: every value is inside, every tick has a label that reads as its value."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgsp.report.axes import integer_axis, linear_axis, log_axis, names_axis, value_axis

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 3))
POSITIVE = st.floats(1e-12, 1e12)


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_a_linear_axis_ends_at_its_outer_ticks_and_holds_every_value(values):
    axis = linear_axis("", values)
    assert axis.low == axis.ticks[0][0] <= min(values) + 1e-6
    assert axis.high == axis.ticks[-1][0] >= max(values) - 1e-6
    assert 2 <= len(axis.ticks) <= 12


@given(st.lists(POSITIVE, min_size=1, max_size=20))
def test_a_log_axis_has_labels_at_least_at_two_places_and_holds_every_value(values):
    axis = log_axis("", values)
    assert len(axis.ticks) >= 2
    assert len({label for _, label in axis.ticks}) == len(axis.ticks)
    assert axis.low <= min(values) * (1 + 1e-9)
    assert axis.high >= max(values) * (1 - 1e-9)
    assert [axis.fraction(axis.low), axis.fraction(axis.high)] == [0, 1]


@given(st.integers(0, 50), st.integers(0, 400))
def test_ticks_of_layers_are_whole_numbers(low, more):
    axis = integer_axis("layer", low, low + more)
    assert axis.ticks
    assert all(label == f"{value:,}" and low <= value <= low + more for value, label in axis.ticks)
    assert len(axis.ticks) <= 14


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([15.2, 33.5], ["15", "20", "25", "30", "35"]),
        ([6.0, 4.2e9], ["1", "100", "10,000", "10⁶", "10⁸", "10¹⁰"]),
        ([1e-10, 1e-8], ["10⁻¹⁰", "10⁻⁹", "10⁻⁸"]),
        ([0.0, 2e-5], ["0", "5×10⁻⁶", "10⁻⁵", "1.5×10⁻⁵", "2×10⁻⁵"]),
        ([-3.0, 1.0], [f"\N{MINUS SIGN}{n}" for n in (3, 2, 1)] + ["0", "1"]),
    ],
)
def test_labels_are_numbers_as_people_write_them(values, labels):
    assert [label for _, label in value_axis("", values).ticks] == labels


def test_scales_are_named_and_places_are_where_they_should_be():
    axis = log_axis("perplexity", [1, 10_000])
    assert axis.label == "perplexity, log scale"
    assert axis.fraction(100) == pytest.approx(0.5)
    assert axis.fraction(0) == 0  # below the axis: drawn at its end
    assert math.isclose(names_axis(["a", "b"]).fraction(0), 0.75)  # the first on top
