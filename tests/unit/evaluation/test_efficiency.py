"""Costs against independent counts, and models timed in turns."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from conftest import make_tiny
from hgsp.evaluation.metrics import efficiency
from hgsp.evaluation.metrics.efficiency import Workload, measure_timings, peak_bytes, static_costs
from hgsp.evaluation.results import Metric
from hgsp.evaluation.side_by_side import static_metrics, timing_metrics
from hgsp.models.fusion import unfused
from hgsp.models.geometry import geometry_of
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan, plan_dropping

SMALL = Workload(prompt_len=6, decode_len=3, repeats=2, batch_sizes=(1, 4))


def check_costs(model):
    """Against the geometry's sums and torch's own FLOP counter."""
    found, geometry = static_costs(model), geometry_of(model)
    assert found.parameters == geometry.total_params
    assert found.weight_bytes == 4 * geometry.total_params
    assert found.kv_cache_bytes_per_token == geometry.kv_cache_bytes_per_token(geometry.shapes, 4)
    assert found.attention_macs_per_position / geometry.queries_per_kv == found.kv_cache_bytes_per_token / 4
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, 5, dtype=torch.long), use_cache=False)
    linear = {"aten.mm", "aten.addmm"}
    flops = sum(count for operator, count in counter.get_flop_counts()["Global"].items() if str(operator) in linear)
    assert found.linear_macs_per_token == flops / 2 / 5


def test_costs_of_dense_models(tiny):
    check_costs(tiny)


@pytest.mark.parametrize("name", ["llama-8q4kv", "qwen2-14q2kv", "llama-9q3kv-tied"])
def test_costs_of_pruned_models(make, name):
    model = make(name)
    dense = static_costs(model)
    pruned = apply_plan(model, mixed_plan(model))
    check_costs(pruned)
    assert static_costs(pruned).linear_macs_per_token < dense.linear_macs_per_token


@pytest.mark.parametrize("name", ["phi3", "phi4-mini"])
def test_fused_projections_count_as_much_as_their_parts(name):
    stock = make_tiny(name)
    assert static_costs(stock) == static_costs(unfused(stock))


def test_costs_of_a_model_without_a_layer(make):
    model = make("llama-8q4kv")
    check_costs(apply_plan(model, plan_dropping(model, layers=[1])))


@pytest.mark.parametrize("layers", [[0], [1, 2]])
def test_a_model_with_layers_without_attention(make, layers):
    """The cache has an entry for every layer that the config counts, and theirs is never filled."""
    model = make("llama-8q4kv")
    pruned = apply_plan(model, plan_dropping(model, kv={layer: range(4) for layer in layers}))
    check_costs(pruned)
    assert measure_timings({"pruned": pruned}, SMALL)["pruned"][4].decode_ms > 0


def test_models_take_turns_and_the_first_round_does_not_count(make, monkeypatch):
    order = []

    def fake_round(model, batch_size, workload):
        order.append((model.name, batch_size))
        slow = 1000.0 if order.count((model.name, batch_size)) == 1 else 0.0
        return slow + model.factor * batch_size, [slow + model.factor] * workload.decode_len

    monkeypatch.setattr(efficiency, "_timed_round", fake_round)
    models = {name: make("llama-8q4kv") for name in ("dense", "pruned")}
    for factor, (name, model) in enumerate(models.items(), 1):
        model.name, model.factor = name, factor
    timings = measure_timings(models, replace(SMALL, repeats=1))
    turns = ["dense", "pruned"] * 2
    assert order == [(name, batch) for batch in (1, 4) for name in turns]
    assert [(timings[name][4].prefill_ms, timings[name][4].decode_ms) for name in models] == [(4, 1), (8, 2)]


def test_unrest_is_the_median_over_the_fastest(make, monkeypatch):
    """Of the counted rounds; of prefill here, whose times differ more."""
    times = iter([(1.0, [1.0]), (10.0, [4.0]), (30.0, [6.0]), (40.0, [5.0])])
    monkeypatch.setattr(efficiency, "_timed_round", lambda *arguments: next(times))
    workload = replace(SMALL, repeats=3, batch_sizes=(1,))
    assert measure_timings({"model": make("llama-8q4kv")}, workload)["model"][1].timing_spread == 3


def test_timings_are_of_real_passes(make):
    model = make("llama-8q4kv")
    lengths = []
    model.register_forward_pre_hook(
        lambda module, arguments, named: lengths.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    timings = measure_timings({"model": model}, SMALL)["model"]
    assert all(timing.prefill_ms > 0 and timing.decode_ms > 0 for timing in timings.values())
    rounds = SMALL.repeats + 2  # one to warm up, one to see the memory
    assert lengths == [shape for batch in (1, 4) for shape in ([(batch, 6)] + [(batch, 1)] * 3) * rounds]


def test_peak_memory_is_weights_and_what_is_held_on_top(make):
    model = make("llama-8q4kv")
    weights = static_costs(model).weight_bytes
    small, large = peak_bytes(model, 1, SMALL), peak_bytes(model, 8, SMALL)
    cache = static_costs(model).kv_cache_bytes_per_token * SMALL.prompt_len
    assert small >= weights + cache
    assert large - weights >= 4 * (small - weights)  # grows with the batch, less what is shared
    assert peak_bytes(model, 8, SMALL) == large  # the allocator's count, not the clock's


def test_peak_is_the_most_at_once_and_not_what_is_left():
    with efficiency._allocations(torch.device("cpu")) as peak:
        first = torch.ones(1000)
        del first
        second = torch.ones(100)
    assert (second.nbytes, peak) == (400, [4000])


def test_pruned_models_need_less_memory(make):
    model = make("llama-8q4kv")
    dense = peak_bytes(model, 2, SMALL)
    assert peak_bytes(apply_plan(model, mixed_plan(model)), 2, SMALL) < dense


def test_rates_are_tokens_of_the_whole_batch_per_second():
    timings = {16: efficiency.Timing(prefill_ms=480.0, decode_ms=32.0, peak_bytes=100)}
    found = {metric.name: metric.value for metric in timing_metrics(timings, Workload(prompt_len=60))}
    assert found == {
        "prefill_ms_batch16": 480.0,
        "prefill_rate_batch16": 2000.0,
        "decode_ms_batch16": 32.0,
        "decode_rate_batch16": 500.0,
        "peak_bytes_batch16": 100,
    }


def test_static_metrics_carry_units(make):
    metrics = {metric.name: metric for metric in static_metrics(static_costs(make("llama-8q4kv")))}
    assert metrics["weight_bytes"] == Metric("weight_bytes", 4 * metrics["parameters"].value, "B", None, False)
    assert metrics["linear_macs_per_token"].unit == "count"
