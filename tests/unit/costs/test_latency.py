"""Latency tables: interpolation, predicted seconds, files, and models that a table does not fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgsp.costs.latency import BlockTimings, LatencyTable, Workload, never_falling
from hgsp.errors import InputError
from hgsp.models.geometry import LayerShape, geometry_of

SHORT, LONG, WIDE = Workload("decode", 1, 100), Workload("decode", 1, 300), Workload("decode", 5, 100)
WIDEST = Workload("decode", 5, 300)
WIDTHS = {1: (1, 33, 95), 8: (8, 48, 96)}


def timings(scale=1.0):
    """Return timings in which odd widths are slower, and the largest measured odd width looks faster by noise."""
    return BlockTimings(50.0 * scale, (10.0 * scale, 14.0 * scale), {1: (4.0, 9.0, 8.0), 8: (3.0, 7.0, 11.0)})


TABLE = LatencyTable(
    "tiny", 64, 8, 2, "a CPU", "float32", "cpu", (1, 4), WIDTHS,
    {SHORT: timings(), LONG: timings(2.0), WIDE: timings(3.0), WIDEST: timings(6.0)}, {"torch": "2"},
)  # fmt: skip


def seconds(num_kv_groups, mlp_width, workload=SHORT):
    return TABLE.block_seconds([LayerShape(num_kv_groups, mlp_width)], workload)[0].tolist()


def test_measured_sizes_are_exact_and_those_between_are_linear():
    assert seconds(1, 8) == [10, 3]
    assert seconds(4, 96) == [14, 11]
    assert seconds(3, 72) == [pytest.approx(10 + 4 * 2 / 3), 9]


def test_a_width_is_looked_up_among_widths_of_its_multiple():
    assert seconds(1, 48)[1] == 7
    assert seconds(1, 49)[1] > seconds(1, 56)[1] > 7


def test_an_absent_block_takes_no_time_and_a_tiny_one_its_fixed_time():
    assert seconds(0, 0) == [0, 0]
    assert seconds(1, 1) == [10, 4]


def test_seconds_of_a_model_are_the_rest_and_all_blocks():
    shapes = [LayerShape(1, 8), LayerShape(0, 96), LayerShape(4, 0)]
    assert TABLE.seconds(shapes, SHORT) == 50 + 10 + 3 + 11 + 14
    assert TABLE.seconds([], SHORT) == 50
    assert TABLE.speedup(shapes, shapes[:1], SHORT) == 88 / 63


def test_workloads_between_the_measured_ones_are_linear():
    assert TABLE.seconds([], Workload("decode", 1, 150)) == 50 * 1.25
    assert TABLE.seconds([], Workload("decode", 2, 200)) == pytest.approx(50 * (0.75 * 1.5 + 0.25 * 4.5))


@pytest.mark.parametrize(
    "workload", [Workload("prefill", 1, 100), Workload("decode", 1, 99), Workload("decode", 6, 100)]
)
def test_workloads_outside_are_refused(workload):
    with pytest.raises(InputError, match="expected a workload within decode, batch 1, context 100"):
        TABLE.seconds([], workload)


def test_the_default_workload_is_the_smallest_decoding_one():
    assert TABLE.default_workload == SHORT
    prefill = Workload("prefill", 1, 10)
    assert replace(TABLE, timings={prefill: timings(), LONG: timings()}).default_workload == LONG
    assert replace(TABLE, timings={prefill: timings()}).default_workload == prefill


def test_marginal_seconds_leave_out_the_fixed_part():
    marginal_LK = TABLE.marginal_seconds([LayerShape(4, 96), LayerShape(1, 0), LayerShape(0, 1)], SHORT)
    np.testing.assert_allclose(marginal_LK, [[4 / 3, 7 / 95], [10, 0], [0, 4]])


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=12))
def test_values_never_fall_and_keep_their_sum(values):
    found = never_falling(values)
    assert len(found) == len(values)
    assert (np.diff(found) >= -1e-9).all()  # rounding of means of pools
    assert found.sum() == pytest.approx(sum(values))
    if values == sorted(values):
        np.testing.assert_allclose(found, values)


@given(st.integers(0, 46))
def test_larger_blocks_of_one_multiple_are_never_faster(step):
    odd, multiple_of_8 = 2 * step + 1, 8 * (step % 11 + 1)
    assert seconds(1, odd)[1] <= seconds(1, odd + 2)[1]
    assert seconds(1, multiple_of_8)[1] <= seconds(1, multiple_of_8 + 8)[1]


def test_a_table_survives_its_file(tmp_path):
    TABLE.write(tmp_path / "table.json")
    assert LatencyTable.read(tmp_path / "table.json") == TABLE


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"kv_groups": 3}, {"timings": [{}]}, {"unknown": 1}])
def test_other_files_are_refused(tmp_path, change):
    path = tmp_path / "table.json"
    TABLE.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match="expected a latency table written by `hgsp profile`"):
        LatencyTable.read(path)


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_files_that_are_no_table_are_refused(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"got .*table\.json"):
        LatencyTable.read(path)
    with pytest.raises(InputError, match=r"got .*absent\.json"):
        LatencyTable.read(tmp_path / "absent.json")


def test_only_models_of_the_geometry_fit(make):
    TABLE.check(geometry_of(make("llama-8q4kv")))
    for other in (make("qwen3-8q2kv"), make("llama-8q4kv", intermediate_size=104)):
        with pytest.raises(InputError, match="measure this model with `hgsp profile`"):
            TABLE.check(geometry_of(other))


def test_another_device_or_dtype_is_a_warning():
    assert TABLE.warnings("a CPU", "float32") == ()
    (device,) = TABLE.warnings("a GPU", "float32")
    assert "another device (a CPU, not a GPU)" in device
    assert len(TABLE.warnings("a GPU", "bfloat16")) == 2
