"""Sizes of layers as settings of a config, shared by everything that builds a model with a size per layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hgsp.models.geometry import LayerShape

#: Widths of experts are multiples of this number: grouped matrix products, which transformers runs them by, refuse rows
#: that are no multiple of 16 bytes.
EXPERT_MULTIPLE = 8

#: Config keys that describe a dense checkpoint rather than its architecture.
_STALE_KEYS = ("model_type", "architectures", "auto_map", "per_layer_config", "transformers_version", "_name_or_path")


def architecture_settings(config: Any) -> dict[str, Any]:
    """Return the settings of a config that hold for a model of other sizes too."""
    return {key: value for key, value in config.to_dict().items() if key not in _STALE_KEYS}


def layer_sizes(
    shape: LayerShape, queries_per_kv: int, expert_width_key: str | None = None, width_key: str = "intermediate_size"
) -> dict[str, Any]:
    """Return the config keys of a layer of this shape; ``skip`` names the blocks that it lacks.

    Args:
        expert_width_key: of the width of experts; None leaves it as it is in the config.
        width_key: of the number of channels of an MLP.
    """
    sizes: dict[str, Any] = {}
    if shape.num_kv_groups:
        sizes["num_attention_heads"] = shape.num_kv_groups * queries_per_kv
        sizes["num_key_value_heads"] = shape.num_kv_groups
    if shape.mlp_width:
        sizes[width_key] = shape.mlp_width
    if shape.num_experts:
        sizes["num_experts"] = shape.num_experts
        if expert_width_key is not None:
            sizes[expert_width_key] = shape.expert_width
    present = (shape.block_sizes[0] or shape.linear_attention, shape.block_sizes[1])
    skipped = [block for block, has in zip(("attention", "mlp"), present, strict=True) if not has]
    return sizes | ({"skip": skipped} if skipped else {})


def stored_keys(config: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Return sizes by the names that a config stores them by; it may have an attribute of another name for one."""
    return {config.attribute_map.get(key, key): value for key, value in sizes.items()}


def sizes_per_layer(shapes: Sequence[LayerShape], queries_per_kv: int, width_key: str) -> dict[int, dict[str, Any]]:
    """Return ``per_layer_config`` for layers of these shapes."""
    return {index: layer_sizes(shape, queries_per_kv, None, width_key) for index, shape in enumerate(shapes)}
