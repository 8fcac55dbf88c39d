"""Shapes and targets from the command line: blocks of channels, equal layers, empty blocks, bytes and KV cache."""

import json

import pytest
from transformers import AutoModelForCausalLM

import run_global_pruning
from conftest import make_tiny
from hgsp.costs.latency import BlockTimings, LatencyTable, Workload
from hgsp.models.geometry import geometry_of
from pruning import BALANCED, analysis_of


def shapes_of(folder):
    return [(len(layer["kept_kv_groups"]), len(layer["kept_mlp_channels"])) for layer in analysis_of(folder)["layers"]]


@pytest.mark.parametrize("family", ["llama-8q4kv", "qwen2-14q2kv"])
def test_widths_are_multiples_and_the_ratio_is_within_a_block(prune, family):
    code, folder = prune("aligned", "--mlp_multiple_of", "16", "--pruning_ratio", "0.3", family=family)
    assert code == 0
    assert all(width % 16 == 0 for _, width in shapes_of(folder))
    report, geometry = analysis_of(folder), geometry_of(make_tiny(family))
    missing = 0.3 * report["params_before"] - (report["params_before"] - report["params_after"])
    assert 0 <= missing < 16 * geometry.mlp_channel_params
    assert report["scoring"]["mlp_multiple_of"] == 16


def test_uniform_layers_load_as_a_plain_model(prune):
    code, folder = prune("uniform", "--uniform", "--pruning_ratio", "0.3", "--search", "2")
    assert code == 0
    assert len(set(shapes_of(folder))) == 1
    report = analysis_of(folder)
    assert report["reached_ratio"] == pytest.approx(0.3, abs=0.01)
    assert report["search"] is None
    assert any("--uniform leaves it nothing to choose" in warning for warning in report["warnings"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == report["params_after"]


def test_presets_of_engines_stand_for_flags_and_explicit_flags_win(prune):
    code, folder = prune("preset", "--shapes_for", "tensorrt", "--mlp_multiple_of", "8", "--pruning_ratio", "0.3")
    assert code == 0
    assert len({num_kv for num_kv, _ in shapes_of(folder)}) == 1
    assert len({width for _, width in shapes_of(folder)}) > 1
    assert all(width % 8 == 0 for _, width in shapes_of(folder))


@pytest.mark.parametrize("reconstruct", ["none", "lstsq"])
def test_blocks_may_be_emptied_and_the_result_loads(prune, reconstruct):
    flags = ("--allow_empty_blocks", "--pruning_ratio", "0.5", "--min_mlp_width", "64", "--reconstruct", reconstruct)
    code, folder = prune("emptied", *flags)
    assert code == 0
    assert any(0 in shape for shape in shapes_of(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == analysis_of(folder)["params_after"]


def run(saved, text_file, tmp_path, name, *flags, family="llama-8q4kv"):
    """Prune without the ratio of the quick settings."""
    settings = [part for flag, value in BALANCED.items() if flag != "--pruning_ratio" for part in (flag, value)]
    dense = saved(make_tiny(family), name=f"dense-{name}")
    argv = ["--base_model", dense, "--output_name", name, "--results_dir", tmp_path / "results", "--dataset", text_file]
    return run_global_pruning.main([*map(str, argv), *settings, *map(str, flags)]), tmp_path / "results" / name


def test_a_target_of_bytes_is_reached(saved, text_file, tmp_path):
    dense = geometry_of(make_tiny("llama-8q4kv")).total_params * 4
    code, folder = run(saved, text_file, tmp_path, "bytes", "--target_bytes", int(0.75 * dense))
    assert code == 0
    report = analysis_of(folder)
    assert report["target"]["name"] == "target_bytes"
    assert report["target"]["reached"] == report["weight_bytes_after"] <= 0.75 * dense
    assert report["asked_ratio"] == pytest.approx(0.25, abs=0.01)


def test_a_target_of_the_kv_cache_is_reached_and_keeps_channels(saved, text_file, tmp_path):
    geometry = geometry_of(make_tiny("llama-8q4kv"))
    dense = geometry.kv_cache_bytes_per_token(geometry.shapes, 4)
    code, folder = run(saved, text_file, tmp_path, "kv", "--target_kv_bytes", dense // 2)
    assert code == 0
    report = analysis_of(folder)
    assert report["kv_cache_bytes_per_token_after"] == report["target"]["reached"] <= dense // 2
    assert [width for _, width in shapes_of(folder)] == [shape.mlp_width for shape in geometry.shapes]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "expected --pruning_ratio to be given, or one of"),
        (("--pruning_ratio", "0.2", "--target_bytes", "1MB"), "expected --pruning_ratio to be given, or one of"),
        (("--target_bytes", "1KB"), "which the smallest shapes reach"),
        (("--target_speedup", "1.2"), "expected --profile to be given for speed"),
        (("--pruning_ratio", "0.2", "--cost", "latency"), "expected --profile to be given for speed"),
        (("--pruning_ratio", "0.2", "--workload", "decode,1,8"), "expected --workload to be given with --profile"),
        (("--target_speedup", "0.9"), "expected --target_speedup to be a number > 1"),
        (("--pruning_ratio", "0.2", "--uniform", "--freeze_first_n_layers", "1"), "equal layers without frozen"),
    ],
    ids=str,
)
def test_budgets_and_shapes_that_cannot_be_met_are_refused(saved, text_file, tmp_path, capsys, flags, expected):
    code, folder = run(saved, text_file, tmp_path, "refused", *flags)
    assert code == 2
    assert expected in capsys.readouterr().err
    assert not folder.exists()


def test_the_unit_of_the_ranking_changes_the_plan_and_is_reported(prune):
    """Attention costs more operations than parameters, so that it leaves later."""
    plans = {}
    for cost in ("params", "macs", "kv_bytes"):
        code, folder = prune(cost, "--cost", cost, "--pruning_ratio", "0.2")
        assert code == 0
        plans[cost] = sum(num_kv for num_kv, _ in shapes_of(folder))
        assert json.loads((folder / "pruning_analysis.json").read_text())["scoring"]["cost"] == cost
    assert plans["kv_bytes"] < plans["params"]


def linear_table(model, path, *, attention=4.0, mlp=1.0):
    """A table in which a KV group and a channel take that many microseconds, a block and the rest 1 each."""
    geometry = geometry_of(model)
    num_kv, width = geometry.shapes[0].num_kv_groups, geometry.shapes[0].mlp_width
    timings = BlockTimings(
        rest=1e-6,
        attention=(1e-6 + attention * 1e-6, 1e-6 + attention * num_kv * 1e-6),
        mlp={1: (1e-6 + mlp * 1e-6, 1e-6 + mlp * width * 1e-6)},
    )
    LatencyTable(
        model="tiny",
        hidden_size=geometry.hidden_size,
        head_dim=geometry.head_dim,
        queries_per_kv=geometry.queries_per_kv,
        device_name="another device",
        dtype="float32",
        clock="cpu",
        kv_groups=(1, num_kv),
        mlp_widths={1: (1, width)},
        timings={Workload("decode", 1, 16): timings},
        environment={},
    ).write(path)
    return path


@pytest.mark.parametrize("flags", [(), ("--allow_empty_blocks",), ("--search", "2", "--search_nsamples", "8")], ids=str)
def test_a_target_speed_is_predicted_and_measured(saved, text_file, tmp_path, flags, capsys):
    table = linear_table(make_tiny("llama-8q4kv"), tmp_path / "table.json")
    code, folder = run(saved, text_file, tmp_path, "fast", "--target_speedup", 1.5, "--profile", table, *flags)
    assert code == 0
    report = analysis_of(folder)
    assert report["scoring"]["cost"] == "latency"
    assert report["speed"]["predicted_speedup"] == pytest.approx(report["target"]["reached"])
    assert 1.5 <= report["target"]["reached"] < 1.52
    assert report["speed"]["measured_speedup"] > 0
    assert any("another device" in warning for warning in report["warnings"])
    assert "speed, predicted (decode, batch 1, context 16)" in capsys.readouterr().out
    if "--allow_empty_blocks" in flags:
        assert "0" in report["whole_blocks"]["kl_by_emptied_blocks"]


def test_groups_that_take_longer_leave_first_under_the_cost_of_latency(saved, text_file, tmp_path):
    kept = {}
    for name, attention in (("cheap", 0.1), ("slow", 1000.0)):
        table = linear_table(make_tiny("llama-8q4kv"), tmp_path / f"{name}.json", attention=attention)
        flags = ("--pruning_ratio", "0.2", "--cost", "latency", "--profile", table)
        code, folder = run(saved, text_file, tmp_path, name, *flags)
        assert code == 0
        kept[name] = sum(num_kv for num_kv, _ in shapes_of(folder))
    assert kept["slow"] < kept["cheap"]


def test_a_table_of_another_model_is_refused(saved, text_file, tmp_path, capsys):
    table = linear_table(make_tiny("qwen2-14q2kv"), tmp_path / "table.json")
    code, folder = run(saved, text_file, tmp_path, "other", "--target_speedup", 1.2, "--profile", table)
    assert code == 2
    assert "expected a latency table of this model" in capsys.readouterr().err
    assert not folder.exists()


def test_a_dry_run_lists_the_bytes_of_every_engine_before_and_after(prune, capsys):
    _, folder = prune("scored", "--pruning_ratio", "0.2")
    capsys.readouterr()
    for scores, change in (((), False), (("--scores", folder / "scores.npz"), True)):
        code, _ = prune("dry", "--dry_run", "--pruning_ratio", "0.2", *scores, "--reconstruct", "none")
        printed = capsys.readouterr().out
        assert code == 0
        for form in ("Transformers, vLLM", "llama.cpp Q8_0", "DeciLM"):
            line = next(line for line in printed.splitlines() if form in line)
            assert ("%" in line) == change
