"""Reasons why an architecture cannot be pruned, told from keys of its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Values of ``layer_types`` of layers whose attention has queries, keys and values.
_ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
#: Config keys of layers that mix tokens without attention.
_MIXERS = ("layers_block_type", "hybrid_override_pattern", "mamba_d_state", "state_size", "ssm_state_size")


def reason_against(raw_config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the part of an unsupported model that pruning lacks, in brackets, and a remedy; both may be empty."""
    text = raw_config.get("text_config")
    inner = text if isinstance(text, Mapping) else raw_config
    if inner.get("num_local_experts") or inner.get("num_experts") or "moe" in str(inner.get("model_type")):
        quantised = (inner.get("quantization_config") or {}).get("quant_method")
        beyond = (
            " with biases and interleaved gates, beside attention with a sink per query head, which nothing here slices"
            if "swiglu_limit" in inner
            else ""
        )
        return f" (mixture of experts{beyond}{f', its weights in {quantised}' if quantised else ''})", ""
    if inner.get("num_kv_shared_layers"):
        return (
            f" (the last {inner['num_kv_shared_layers']} layers read keys and values of earlier ones, and removing a "
            "KV group there would remove it here)",
            "",
        )
    others = sorted({*(inner.get("layer_types") or ())} - _ATTENTION)
    if others or any(inner.get(key) for key in _MIXERS):
        kind = f": {others[0]}" if others else ""
        return f" (layers without attention{kind}, which have no KV groups to score and remove)", ""
    if inner is not raw_config:
        return (
            " (multimodal)",
            "save its language model alone and prune that; docs/ADDING_A_FAMILY.md shows how",
        )
    return "", ""
