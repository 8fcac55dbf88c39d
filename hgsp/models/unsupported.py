"""Reasons why an architecture cannot be pruned, told from keys of its config."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

#: Values of ``layer_types``, or of what earlier configs call it, of layers that have queries, keys and values.
_ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention", "attention"})
#: Config keys of one kind per layer.
_TYPES = ("layer_types", "layers_block_type", "block_types")
#: Config keys of layers that mix tokens without attention, where the config has no kind per layer.
_MIXERS = ("hybrid_override_pattern", "mamba_d_state", "state_size", "ssm_state_size")
_MULTIMODAL = " (multimodal)", "save its language model alone and prune that; docs/ADDING_A_FAMILY.md shows how"


def reason_against(raw_config: Mapping[str, Any], supported: Container[str]) -> tuple[str, str]:
    """Return the part of an unsupported model that pruning lacks, in brackets, and a remedy; both may be empty."""
    text = raw_config.get("text_config")
    inner = text if isinstance(text, Mapping) else raw_config
    is_multimodal = inner is not raw_config
    if is_multimodal and inner.get("model_type") in supported:
        return _MULTIMODAL
    if is_mixture(inner):
        quantised = (inner.get("quantization_config") or {}).get("quant_method")
        return f" (mixture of experts{f', its weights in {quantised}' if quantised else ''})", ""
    if inner.get("num_kv_shared_layers"):
        return (
            f" (the last {inner['num_kv_shared_layers']} layers read keys and values of earlier ones, and removing a "
            "KV group there would remove it here)",
            "",
        )
    types = {kind for key in _TYPES for kind in inner.get(key) or ()}
    others = sorted(types - _ATTENTION)
    if others or (not types and any(inner.get(key) for key in _MIXERS)):
        kind = f": {others[0]}" if others else ""
        return f" (layers without attention{kind}, of a kind that no supported family has)", ""
    return _MULTIMODAL if is_multimodal else ("", "")


def is_mixture(config: Mapping[str, Any]) -> bool:
    """Return whether a config is of a mixture of experts; some families of them have dense members with 0 experts."""
    numbers = [config[key] for key in ("num_local_experts", "num_experts") if key in config]
    return any(numbers) if numbers else "moe" in str(config.get("model_type"))
