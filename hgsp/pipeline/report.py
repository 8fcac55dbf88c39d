"""What a run says about itself: ``pruning_analysis.json``, the closing table, the dry run."""

from __future__ import annotations

import json
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import hgsp
from hgsp.layerwise.distributed import launched_processes
from hgsp.models.geometry import Geometry
from hgsp.models.loading import DTYPES
from hgsp.pipeline.decision import PruningDecision
from hgsp.pipeline.request import Request
from hgsp.pipeline.run import ReconstructedLayers
from hgsp.pruning.plan import PrunePlan

SCHEMA_VERSION = 1
#: A pruned model whose perplexity is this many times the dense one's is called collapsed.
COLLAPSE_FACTOR = 100.0


def peak_memory_bytes(device: str) -> int:
    """Most memory this process ever held: of the GPU where there is one, else of main memory (resident set)."""
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment(device: str, dtype: str | None, seed: int) -> dict[str, Any]:
    """Versions, device and seed: what it takes to reproduce the run."""
    versions = {name: _version(name) for name in ("torch", "transformers", "safetensors", "numpy")}
    return {
        "hgsp": hgsp.__version__,
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "num_processes": launched_processes(),
        "dtype": dtype,
        "seed": seed,
    }


def analysis(
    request: Request,
    decision: PruningDecision,
    *,
    command: str,
    asked_ratio: float,
    params_after: int,
    evaluation: Mapping[str, Any],
    samples: Mapping[str, str | None],
    timings_s: Mapping[str, float],
    warnings: Sequence[str],
    reconstructed: ReconstructedLayers | None = None,
) -> dict[str, Any]:
    """The content of ``pruning_analysis.json``; counts are parameters and bytes of the models themselves."""
    geometry, plan = request.geometry, decision.plan
    removed = geometry.total_params - params_after
    value_bytes = DTYPES[request.config.dtype].itemsize
    after = tuple(keep.shape for keep in plan.layers)
    layers = [
        {
            "layer": index,
            "kept_kv_groups": list(keep.kv_groups),
            "kept_mlp_channels": list(keep.mlp_channels),
            "kept_ratio": geometry.layer_params(keep.shape) / geometry.layer_params(dense),
            "prior_mode": mode,
        }
        for index, (keep, dense, mode) in enumerate(zip(plan.layers, geometry.shapes, decision.modes, strict=True))
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "base_model": request.config.base_model,
        "importance_method": plan.provenance["importance_method"],
        "asked_ratio": asked_ratio,
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
        "layers": layers,
        "scoring": dict(plan.provenance),
        "search": decision.searched,
        "reconstruction": None if reconstructed is None else reconstructed.found.describe(),
        "evaluation": dict(evaluation),
        "collapsed": has_collapsed(evaluation),
        "samples": dict(samples),
        "timings_s": {stage: round(seconds, 3) for stage, seconds in timings_s.items()},
        "peak_memory_bytes": peak_memory_bytes(request.device),
        "environment": environment(request.device, request.config.dtype, request.config.seed),
        "warnings": list(warnings),
    }


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Strict JSON: no NaN, no infinity."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def has_collapsed(evaluation: Mapping[str, Any]) -> bool:
    """Whether any perplexity grew by more than ``COLLAPSE_FACTOR``."""
    before, after = evaluation.get("before", {}), evaluation.get("after", {})
    return any(after[name]["ppl"] > COLLAPSE_FACTOR * before[name]["ppl"] for name in after if name in before)


def closing_table(report: Mapping[str, Any]) -> Table:
    """Before and after, side by side."""
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
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in report["timings_s"].items())
    removed = ", ".join(map(str, report["removed_layers"])) or "none"
    table.caption = (
        f"removed: {report['reached_ratio']:.4f} of all parameters (asked {report['asked_ratio']:.4f}), "
        f"{report['reached_ratio_decoder']:.4f} of the decoder layers; whole layers removed: {removed}\n"
        f"seconds: {seconds}; peak memory {report['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    table.caption_justify = "left"
    return table


def dry_run_table(request: Request, plan: PrunePlan | None = None) -> Table:
    """Per-layer shapes, parameters, bytes and KV-cache bytes per token, dense and, if there is a plan, kept."""
    geometry: Geometry = request.geometry
    value_bytes = DTYPES[request.config.dtype].itemsize
    after = () if plan is None else tuple(keep.shape for keep in plan.layers)
    title = f"{request.config.base_model}: {geometry.queries_per_kv} query heads per KV head"
    removed = "" if plan is None else f", {plan.removed_params / geometry.total_params:.2%} of all parameters removed"
    table = Table(title=title + removed)
    headings = ["layer", "KV groups", "MLP channels", "parameters", "bytes", "KV bytes/token"]
    for heading in headings + (["kept KV groups", "kept channels", "kept parameters"] if after else []):
        table.add_column(heading, justify="right")
    for index, shape in enumerate(geometry.shapes):
        params = geometry.layer_params(shape)
        kv_bytes = geometry.kv_cache_bytes_per_token((shape,), value_bytes)
        row = [index, shape.num_kv_groups, shape.mlp_width, f"{params:,}", f"{params * value_bytes:,}", f"{kv_bytes:,}"]
        if after:
            row += [after[index].num_kv_groups, after[index].mlp_width, f"{geometry.layer_params(after[index]):,}"]
        table.add_row(*map(str, row))
    other = geometry.total_params - geometry.decoder_params
    table.add_row("rest", "", "", f"{other:,}", f"{other * value_bytes:,}", "0", *[""] * (3 if after else 0))
    total_kv = geometry.kv_cache_bytes_per_token(geometry.shapes, value_bytes)
    total = geometry.total_params
    table.add_row("all", "", "", f"{total:,}", f"{total * value_bytes:,}", f"{total_kv:,}", *[""] * (3 if after else 0))
    return table


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
