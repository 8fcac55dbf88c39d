"""Costs of groups and plans against counts on the pruned models themselves."""

import numpy as np
import pytest

from hgsp.costs.costs import COSTS, CostOptions, kv_cache_bytes, weight_bytes
from hgsp.costs.latency import BlockTimings, LatencyTable, Workload
from hgsp.errors import InputError
from hgsp.evaluation.metrics.efficiency import static_costs
from hgsp.models.geometry import geometry_of
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping

CONTEXT = 100


def plans(model):
    yield mixed_plan(model)
    yield plan_dropping(model, kv={1: range(16)}, mlp={2: range(96)})
    yield plan_dropping(model, layers=[1])


def decoder_macs(geometry, shapes, context_length):
    """Return the multiply-accumulates of all decoder layers for one token, by the cost of their groups."""
    attention, mlp = COSTS["macs"](geometry, CostOptions(context_length=context_length))[0].astype(int).tolist()
    return sum(shape.num_kv_groups * attention + shape.mlp_width * mlp for shape in shapes)


def table_of(geometry):
    """Return a table in which a KV group takes 4 s, a channel 1 s, and calling a block 10 s."""
    largest = geometry.shapes[0]
    groups, widths = tuple(range(1, largest.num_kv_groups + 1)), (1, largest.mlp_width)
    timings = BlockTimings(100.0, tuple(10.0 + 4 * k for k in groups), {1: tuple(10.0 + w for w in widths)})
    sizes = geometry.hidden_size, geometry.head_dim, geometry.queries_per_kv
    return LatencyTable(
        "tiny", *sizes, "a CPU", "float32", "cpu", groups, {1: widths}, {Workload("decode", 1, 8): timings}, {}
    )


def test_measures_of_plans_are_those_counted_on_the_pruned_models(tiny):
    geometry = geometry_of(tiny)
    head_macs = static_costs(tiny).linear_macs_per_token - decoder_macs(geometry, geometry.shapes, 0)
    assert head_macs == tiny.lm_head.weight.numel()
    for plan in plans(tiny):
        shapes = [keep.shape for keep in plan.layers]
        counted = static_costs(apply_plan(tiny, plan, inplace=False))
        assert weight_bytes(geometry, shapes, 4) == counted.weight_bytes
        assert kv_cache_bytes(geometry, shapes, 4) == counted.kv_cache_bytes_per_token
        assert decoder_macs(geometry, shapes, CONTEXT) == (
            counted.linear_macs_per_token - head_macs + CONTEXT * counted.attention_macs_per_position
        )


@pytest.mark.parametrize("name", COSTS)
def test_costs_are_finite_and_of_one_group_per_layer_and_kind(tiny, name):
    geometry = geometry_of(tiny)
    cost_LK = COSTS[name](geometry, CostOptions(4, CONTEXT, table_of(geometry)))
    assert cost_LK.shape == (3, 2)
    assert cost_LK.dtype == np.float64
    assert np.isfinite(cost_LK).all()
    assert (cost_LK[:, 0] > 0).all()
    assert (cost_LK[:, 1] > 0).all() == (name != "kv_bytes")


def test_a_group_costs_what_its_removal_saves(make):
    geometry = geometry_of(make("qwen2-14q2kv"))
    shapes, options = geometry.shapes, CostOptions(2, CONTEXT)
    measures = {
        "bytes": lambda shapes: weight_bytes(geometry, shapes, 2),
        "macs": lambda shapes: decoder_macs(geometry, shapes, CONTEXT),
        "kv_bytes": lambda shapes: kv_cache_bytes(geometry, shapes, 2),
    }
    for name, measure in measures.items():
        without = [
            (type(shapes[0])(shapes[0].num_kv_groups - 1, shapes[0].mlp_width), *shapes[1:]),
            (type(shapes[0])(shapes[0].num_kv_groups, shapes[0].mlp_width - 1), *shapes[1:]),
        ]
        assert COSTS[name](geometry, options)[0].tolist() == [measure(shapes) - measure(other) for other in without]


def test_seconds_of_a_group_leave_out_the_fixed_part_of_its_block(make):
    geometry = geometry_of(make("llama-8q4kv"))
    options = CostOptions(table=table_of(geometry))
    np.testing.assert_allclose(COSTS["latency"](geometry, options), [[4, 1]] * 3)


def test_the_only_group_of_a_block_costs_all_of_its_seconds(make):
    geometry = geometry_of(make("llama-mqa"))
    options = CostOptions(table=table_of(geometry))
    np.testing.assert_allclose(COSTS["latency"](geometry, options), [[14, 1]] * 3)


def test_the_latency_wants_a_table_of_the_same_geometry(make):
    geometry, other = (geometry_of(make(name)) for name in ("llama-8q4kv", "qwen3-8q2kv"))
    with pytest.raises(InputError, match="expected a latency table; got none"):
        COSTS["latency"](geometry, CostOptions())
    with pytest.raises(InputError, match=r"a latency table of this model .* got one of tiny"):
        COSTS["latency"](geometry, CostOptions(table=table_of(other)))
