"""Profiles of tiny models: sizes on the grid, complete tables, and passes that leave no trace."""

from dataclasses import replace

import pytest
import torch
from rich.table import Table

from hgsp.costs.latency import Workload
from hgsp.costs.passes import TimedPasses, random_model
from hgsp.costs.profile import GRID_SIZE, ProfileOptions, grid_of, profile
from hgsp.costs.tables import describe
from hgsp.models.geometry import LayerShape, geometry_of

QUICK = ProfileOptions(dtype="float32", batch_sizes=(1, 2), context_lengths=(4, 8), repeats=2)


@pytest.fixture
def large(make):
    """Return the geometry of a large model of which nothing is built."""
    geometry = geometry_of(make("llama-8q4kv"))
    return replace(geometry, shapes=(LayerShape(32, 2048), LayerShape(4, 1000)))


def test_the_grid_has_widths_of_every_multiple_up_to_the_largest_layer(large):
    grid = grid_of(large)
    assert (grid.kv_groups[0], grid.kv_groups[-1], len(grid.kv_groups)) == (1, 32, GRID_SIZE)
    for multiple, coarser in ((1, 8), (8, 64), (64, 4096)):
        widths = grid.mlp_widths[multiple]
        assert len(widths) == GRID_SIZE
        assert all(width % multiple == 0 and width % coarser for width in widths)
        assert 0 < widths[0] <= multiple
        assert 2048 - multiple <= widths[-1] <= 2048


def test_small_models_have_one_grid(make):
    grid = grid_of(geometry_of(make("llama-mqa")))
    assert grid.kv_groups == (1,)
    assert list(grid.mlp_widths) == [1]
    assert (grid.mlp_widths[1][0], grid.mlp_widths[1][-1]) == (1, 96)


def test_every_copy_has_every_size_in_another_order(large):
    grid = grid_of(large)
    once, both = grid.shapes(), grid.shapes(2)
    assert both[: len(once)] == once != both[len(once) :]
    for shapes in (once, both[len(once) :]):
        assert sorted(shape.mlp_width for shape in shapes) == sorted(sum(grid.mlp_widths.values(), ()))
        assert {shape.num_kv_groups for shape in shapes} == set(grid.kv_groups)


def test_a_profile_times_every_size_of_every_family(tiny):
    geometry = geometry_of(tiny)
    table = profile("tiny", tiny.config, geometry, QUICK)
    assert set(table.timings) == set(QUICK.workloads)
    assert len(table.timings) == 8
    for workload, timings in table.timings.items():
        assert timings.rest > 0
        assert len(timings.attention) == len(table.kv_groups)
        assert all(len(timings.mlp[multiple]) == len(widths) for multiple, widths in table.mlp_widths.items())
        assert min(*timings.attention, timings.rest, *sum(timings.mlp.values(), ())) > 0
        assert table.speedup(geometry.shapes, geometry.shapes[1:], workload) > 1
    table.check(geometry)
    shown = [item for item in describe(table, geometry) if isinstance(item, Table)]
    assert [item.row_count for item in shown] == 2 * [len(table.kv_groups) + len(table.mlp_widths[1]) + 1, 5]


def test_a_random_model_has_the_shapes_without_empty_layers(tiny):
    shapes = [LayerShape(1, 5), LayerShape(0, 0), LayerShape(0, 7), LayerShape(1, 0)]
    model = random_model(tiny.config, geometry_of(tiny), shapes, "bfloat16", "cpu")
    assert geometry_of(model).shapes == (shapes[0], *shapes[2:])
    assert model.dtype == torch.bfloat16
    passes = TimedPasses(model, Workload("decode", 2, 3), "cpu")
    assert passes.run() > 0


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_parts_of_a_pass_are_those_of_its_layers(make, phase, clock):
    model = make("llama-8q4kv")
    found = TimedPasses(model, Workload(phase, 2, 6), clock).run_blocks()
    assert found.blocks.shape == (3, 2)
    assert (found.blocks >= 0).all()
    assert found.total == found.rest + found.blocks.sum() > 0
    norms = [layer.input_layernorm for layer in model.model.layers]
    assert not any(norm._forward_pre_hooks for norm in (*norms, model.model.norm))


def test_every_decoding_pass_starts_from_the_same_context(make, monkeypatch):
    model, lengths = make("llama-8q4kv"), []
    passes = TimedPasses(model, Workload("decode", 2, 6), "wall")
    model.model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["past_key_values"].get_seq_length()), with_kwargs=True
    )
    for run in (passes.run, passes.run_blocks, passes.run):
        run()
    assert lengths == [6, 6, 6]
