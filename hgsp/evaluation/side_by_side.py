"""Efficiency of all models of a run, loaded together and timed in turns so that ratios are meaningful.

A result is reused only if it was measured beside the same models. The same weights in two roles are measured once, so
that a model compared with itself has ratio 1.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from hgsp.console.progress import Progress, silent, terminal
from hgsp.console.report_schema import FAILED
from hgsp.environment import device_name
from hgsp.evaluation.config import EvaluationConfig
from hgsp.evaluation.jobs import Measured
from hgsp.evaluation.metrics.efficiency import Static, Timing, Workload, measure_timings, static_costs
from hgsp.evaluation.models import ModelUnderTest, load_model
from hgsp.evaluation.results import Metric, TaskResult
from hgsp.evaluation.runner import FAILURES, Runner, done, reason_of, release_memory
from hgsp.evaluation.tasks import EFFICIENCY

LOG = logging.getLogger("hgsp.evaluation")


def run_efficiency(runner: Runner, models: Sequence[ModelUnderTest], config: EvaluationConfig, device: str) -> None:
    """Measure all models unless ``results`` has them, and record the results; a failure counts for all of them."""
    workload = Workload(config.prompt_len, config.decode_len, config.repeats)
    request = efficiency_request(workload, config, device, models)
    blank = {model.role: TaskResult(model.role, EFFICIENCY, FAILED, model.identity, request) for model in models}
    results = runner.results
    if not config.rerun and all(results.done(role, result.key) is not None for role, result in blank.items()):
        LOG.info("efficiency: measured before beside the same models; --rerun measures again")
        return
    start = time.perf_counter()
    try:
        measured = _load_and_measure(models, workload, config.dtype, device)
    except FAILURES as error:
        for result in blank.values():
            runner.record(TaskResult(**{**vars(result), "reason": reason_of(error)}))
        return
    finally:
        release_memory()
    results.drop(lambda item: item.task == EFFICIENCY and _beside_others(item.request, request))
    for model in models:
        runner.record(done(blank[model.role], measured[model.identity], time.perf_counter() - start))


def _load_and_measure(
    models: Sequence[ModelUnderTest], workload: Workload, dtype: str | None, device: str
) -> dict[str, Measured]:
    names = {model.identity: model.name for model in models}  # the same weights in two roles are loaded once
    loaded = {identity: load_model(name, dtype, device) for identity, name in names.items()}
    return measure(loaded, workload, device, terminal)


def measure(
    models: Mapping[str, Any], workload: Workload, device: str, progress: Progress = silent
) -> dict[str, Measured]:
    """Measure models in memory in turns; key -> measurement."""
    static = {key: static_costs(model) for key, model in models.items()}
    timings = measure_timings(models, workload, progress)
    on = f"{device_name(device)}, {torch.get_num_threads()} CPU threads"
    return {key: _measured(static[key], timings[key], workload, str(model.dtype), on) for key, model in models.items()}


def _measured(static: Static, timings: Mapping[int, Timing], workload: Workload, dtype: str, on: str) -> Measured:
    dtype = dtype.removeprefix("torch.")
    shape = f"prompt {workload.prompt_len}, decode {workload.decode_len}"
    description = (
        f"{shape} tokens, median of {workload.repeats} rounds after one warm-up round, models of this run in turns, "
        f"{dtype}, {on}; peak = weights + peak of tensors allocated on top; linear MACs include the head; attention "
        "MACs are per token of context"
    )
    timing_spread = max(timing.timing_spread for timing in timings.values())
    protocol = {
        **asdict(workload),
        "dtype": dtype,
        "device_name": on,
        "timing_spread": timing_spread,
        "description": description,
    }
    return Measured(
        (*static_metrics(static), *timing_metrics(timings, workload)),
        workload.repeats,
        f"{shape}, {dtype}, {on}",
        protocol,
    )


def static_metrics(static: Static) -> tuple[Metric, ...]:
    """Return sizes and counts as metrics."""
    units = {"weight_bytes": "B", "kv_cache_bytes_per_token": "B"}
    return tuple(
        Metric(name, value, units.get(name, "count"), higher_is_better=False) for name, value in asdict(static).items()
    )


def timing_metrics(timings: Mapping[int, Timing], workload: Workload) -> tuple[Metric, ...]:
    """Return latency of prefill and of one decode step, throughput over the whole batch, and peak memory."""
    metrics: list[Metric] = []
    for batch, timing in timings.items():
        prefill_rate = 1000 * batch * workload.prompt_len / timing.prefill_ms
        decode_rate = 1000 * batch / timing.decode_ms
        metrics += [
            Metric(f"prefill_ms_batch{batch}", timing.prefill_ms, "ms", higher_is_better=False),
            Metric(f"prefill_rate_batch{batch}", prefill_rate, "tokens/s", higher_is_better=True),
            Metric(f"decode_ms_batch{batch}", timing.decode_ms, "ms", higher_is_better=False),
            Metric(f"decode_rate_batch{batch}", decode_rate, "tokens/s", higher_is_better=True),
            Metric(f"peak_bytes_batch{batch}", timing.peak_bytes, "B", higher_is_better=False),
        ]
    return tuple(metrics)


def efficiency_request(
    workload: Workload, config: EvaluationConfig, device: str, models: Sequence[ModelUnderTest]
) -> dict[str, Any]:
    """Return everything the numbers depend on, including the other models of the run."""
    return {
        "prompt_len": workload.prompt_len,
        "decode_len": workload.decode_len,
        "repeats": workload.repeats,
        "batch_sizes": list(workload.batch_sizes),
        "dtype": config.dtype,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "side_by_side": sorted({model.identity for model in models}),
    }


def _beside_others(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether two requests differ in the models of the run alone; one that was never made has no content."""
    return not old or (old != new and {**old, "side_by_side": None} == {**new, "side_by_side": None})
