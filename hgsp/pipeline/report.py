"""The pruning report: ``pruning_analysis.json`` and the closing table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hgsp.console.report_schema import PRUNING_SCHEMA
from hgsp.environment import describe_environment, in_gib, peak_memory_bytes
from hgsp.evaluation.collapse import before_and_after, has_collapsed
from hgsp.models.geometry import Geometry
from hgsp.models.loading import DTYPES
from hgsp.pipeline.decision import PruningDecision
from hgsp.pipeline.request import Request
from hgsp.pipeline.stages import Pruning
from hgsp.pruning.budget import Budget


def analysis(
    request: Request,
    pruning: Pruning,
    *,
    command: str,
    budget: Budget,
    asked_ratio: float | None,
    params_after: int,
    evaluation: Mapping[str, Any],
    samples: Mapping[str, Any],
    speed: Mapping[str, Any] | None,
    timings_s: Mapping[str, float],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Return the content of ``pruning_analysis.json``; parameters and bytes are counted on the models."""
    geometry, decision = request.geometry, pruning.decision
    plan = decision.plan
    removed = geometry.total_params - params_after
    value_bytes = DTYPES[request.config.dtype].itemsize
    after = tuple(keep.shape for keep in plan.layers)
    target = budget.target
    return {
        "schema_version": PRUNING_SCHEMA,
        "command": command,
        "base_model": request.config.base_model,
        "importance_method": plan.provenance["importance_method"],
        "asked_ratio": plan.budget_params / geometry.total_params if asked_ratio is None else asked_ratio,
        "target": target and {"name": target.name, "asked": target.asked, "reached": target.reached(after)},
        "reached_ratio": removed / geometry.total_params,
        "reached_ratio_decoder": removed / geometry.decoder_params,
        "params_before": geometry.total_params,
        "params_after": params_after,
        "weight_bytes_before": geometry.total_params * value_bytes,
        "weight_bytes_after": params_after * value_bytes,
        "kv_cache_bytes_per_token_before": geometry.kv_cache_bytes_per_token(geometry.shapes, value_bytes),
        "kv_cache_bytes_per_token_after": geometry.kv_cache_bytes_per_token(after, value_bytes),
        "gqa_ratio": geometry.queries_per_kv,
        "removed_layers": list(plan.removed_layers),
        "layers": _layers(geometry, decision),
        "scoring": dict(plan.provenance),
        "search": decision.searched,
        "whole_blocks": decision.whole_blocks,
        "reconstruction": None if pruning.reconstruction is None else pruning.reconstruction.describe(),
        "evaluation": dict(evaluation),
        "collapsed": bool(has_collapsed(before_and_after(evaluation).values())),
        "samples": dict(samples),
        "speed": speed,
        "timings_s": {stage: round(seconds, 3) for stage, seconds in timings_s.items()},
        "peak_memory_bytes": peak_memory_bytes(request.device),
        "environment": describe_environment(request.device, dtype=request.config.dtype, seed=request.config.seed),
        "warnings": list(warnings),
    }


def _layers(geometry: Geometry, decision: PruningDecision) -> list[dict[str, Any]]:
    """Return an entry per dense layer."""
    return [
        {
            "layer": index,
            "kept_kv_groups": list(keep.kv_groups),
            "kept_mlp_channels": list(keep.mlp_channels),
            "num_kv_groups": dense.num_kv_groups,
            "num_mlp_channels": dense.mlp_width,
            "kept_ratio": geometry.layer_params(keep.shape) / geometry.layer_params(dense),
            "prior_mode": mode,
        }
        for index, (keep, dense, mode) in enumerate(
            zip(decision.plan.layers, geometry.shapes, decision.modes, strict=True)
        )
    ]


def closing_table(report: Mapping[str, Any]) -> Table:
    """Return the table of sizes and perplexities before and after."""
    name = Path(report["base_model"]).name
    table = Table(title=f"{name}: {report['reached_ratio']:.2%} of all parameters removed", min_width=80)
    for heading in ("", "before", "after", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, key in (
        ("parameters", "params"),
        ("weight bytes", "weight_bytes"),
        ("KV bytes per token", "kv_cache_bytes_per_token"),
    ):
        before, after = report[f"{key}_before"], report[f"{key}_after"]
        table.add_row(label, f"{before:,}", f"{after:,}", f"{after / before - 1:+.1%}")
    measured = report["evaluation"]
    for name, result in measured.get("after", {}).items():
        dense = measured["before"][name]["ppl"]
        label = f"PPL {name} ({result['windows']} x {result['seq_len']})"
        table.add_row(label, f"{dense:.2f}", f"{result['ppl']:.2f}", f"x {result['ppl'] / dense:.2f}")
    if speed := report["speed"]:
        for label, key in (("predicted", "predicted_speedup"), ("measured", "measured_speedup")):
            if speed[key] is not None:
                table.add_row(f"speed, {label} ({speed['workload']})", "", "", f"x {speed[key]:.2f}")
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in report["timings_s"].items())
    removed = ", ".join(map(str, report["removed_layers"])) or "none"
    table.caption = (
        f"removed: {report['reached_ratio']:.4f} of all parameters ({_asked(report)}), "
        f"{report['reached_ratio_decoder']:.4f} of the decoder layers; whole layers removed: {removed}\n"
        f"seconds: {seconds}; peak memory {in_gib(report['peak_memory_bytes'])}"
    )
    table.caption_justify = "left"
    return table


def _asked(report: Mapping[str, Any]) -> str:
    """Say what was asked for, and what a target reached."""
    if target := report["target"]:
        return f"--{target['name']} {target['asked']:,g}: {target['reached']:,.4g}"
    return f"asked {report['asked_ratio']:.4f}"
