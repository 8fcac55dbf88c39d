"""Tiny random mixtures of experts, and plans for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from conftest import COMMON
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import LayerKeep, PrunePlan
from plans import plan_of

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "pad_token_id": None}
EIGHT = {"num_experts_per_tok": 2, "intermediate_size": 24}
#: name -> (model class, config class, what differs). The second layer of the mixed one has a plain MLP.
TINY_MOE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3-moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "head_dim": 8,
            "norm_topk_prob": True,
        },
    ),
    "qwen3-moe-mixed": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "head_dim": 8,
            "mlp_only_layers": [1],
        },
    ),
    "olmoe": (OlmoeForCausalLM, OlmoeConfig, {"num_experts": 8, **EIGHT, "clip_qkv": 4.0}),
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 8, **EIGHT, "sliding_window": None}),
}


def make_moe(name: str, seed: int = 0, **changes: Any) -> Any:
    """A float32 model with random weights, in eval mode."""
    model_class, config_class, settings = TINY_MOE[name]
    torch.manual_seed(seed)
    return model_class(config_class(**{**COMMON, **HEADS, **settings, **changes})).eval()


def plan_keeping(model: Any, experts: Mapping[int, tuple[int, ...]], kv: Mapping[int, tuple[int, ...]]) -> PrunePlan:
    """A plan that keeps some experts and KV groups of some layers, and half of the channels of plain MLPs."""
    geometry = geometry_of(model)
    keeps = []
    for index, shape in enumerate(geometry.shapes):
        keeps.append(
            LayerKeep(
                kv.get(index, tuple(range(shape.num_kv_groups))),
                tuple(range(0, shape.mlp_width, 2)),
                experts.get(index, tuple(range(shape.num_experts))) if shape.num_experts else (),
            )
        )
    return plan_of(geometry, keeps)


def uneven_plan(model: Any) -> PrunePlan:
    """Another number of experts in each layer, and fewer KV groups where one may leave alone."""
    fixed = not geometry_of(model).prunes_kv_groups
    return plan_keeping(model, {0: (1, 4, 6), 2: (0, 2, 3, 5, 7)}, {} if fixed else {0: (0, 2), 1: (1, 2, 3)})
