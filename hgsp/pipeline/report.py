"""The pruning report: the content of ``pruning_analysis.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hgsp.console.report_schema import AFTER, BEFORE, PRUNING_SCHEMA
from hgsp.environment import describe_environment, peak_memory_bytes
from hgsp.evaluation.collapse import before_and_after, has_collapsed
from hgsp.evaluation.pre_post import continuation
from hgsp.evaluation.verdict import Verdict, judge
from hgsp.models.geometry import Geometry
from hgsp.models.kinds import DENSE_KINDS, GROUP_KINDS
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
    verdict = _verdict(decision, evaluation, samples)
    return {
        "schema_version": PRUNING_SCHEMA,
        "command": command,
        "base_model": request.config.base_model,
        "importance_method": plan.provenance["importance_method"],
        "asked_ratio": plan.budget_params / geometry.total_params if asked_ratio is None else asked_ratio,
        "asked_ratio_of": request.config.ratio_of,
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
        "verdict": verdict and asdict(verdict),
        "samples": dict(samples),
        "speed": speed,
        "timings_s": {stage: round(seconds, 3) for stage, seconds in timings_s.items()},
        "peak_memory_bytes": peak_memory_bytes(request.device),
        "environment": describe_environment(request.device, dtype=request.config.dtype, seed=request.config.seed),
        "warnings": list(warnings),
    }


def _verdict(
    decision: PruningDecision, evaluation: Mapping[str, Any], samples: Mapping[str, str | None]
) -> Verdict | None:
    """Judge the pruned model by what was measured: perplexity, the divergence that a search found, and the samples."""
    kl = None if decision.searched is None else decision.searched["kl_after"]
    before, after = (continuation(samples.get(when)) for when in (BEFORE, AFTER))
    return judge(before_and_after(evaluation), kl, (before, after))


def _layers(geometry: Geometry, decision: PruningDecision) -> list[dict[str, Any]]:
    """Return an entry per dense layer; models with experts have the keys of all kinds, linear attention one more.

    The number of slots is left out where experts lose no channels: their slots are then no groups.
    """
    kinds = GROUP_KINDS if geometry.experts_per_token else DENSE_KINDS
    counted = [kind for kind in kinds if kind.name != "expert_channel" or geometry.prunes_expert_channels]
    return [
        {
            "layer": index,
            **{f"kept_{kind.kept}": list(keep.groups[kind.name]) for kind in kinds},
            **{kind.dense_key: dense.size_of(kind.name) for kind in counted},
            **({"kept_linear_attention": keep.linear_attention} if dense.linear_attention else {}),
            "kept_ratio": geometry.layer_params(keep.shape) / geometry.layer_params(dense),
            "prior_mode": mode,
        }
        for index, (keep, dense, mode) in enumerate(
            zip(decision.plan.layers, geometry.shapes, decision.modes, strict=True)
        )
    ]
