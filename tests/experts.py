"""Tiny random mixtures of experts, and plans for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from conftest import COMMON
from hgsp.data.calibration import Calibration
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.models.loaded import LoadedModel
from hgsp.pruning.plan import LayerKeep, PrunePlan
from hgsp.pruning.select import select_groups
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.scoring.score_model import score_model
from hgsp.scoring.scores import RankingOptions, Scores
from plans import plan_of

TEXT = Calibration(torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(3)), "random", 3)

EXPERT_WIDTH = 24
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "pad_token_id": None}
EIGHT = {"num_experts_per_tok": 2, "intermediate_size": 24}
#: name -> (model class, config class, what differs). The second layer of two has a plain MLP.
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
    "qwen2-moe": (
        Qwen2MoeForCausalLM,
        Qwen2MoeConfig,
        {
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "mlp_only_layers": [1],
        },
    ),
    "olmoe": (OlmoeForCausalLM, OlmoeConfig, {"num_experts": 8, **EIGHT, "clip_qkv": 4.0}),
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 8, **EIGHT, "sliding_window": None}),
    "gpt-oss": (
        GptOssForCausalLM,
        GptOssConfig,
        {
            "num_local_experts": 8,
            **EIGHT,
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}

#: Those whose experts may lose channels.
WITH_CHANNELS = tuple(name for name in TINY_MOE if name != "gpt-oss")


def make_moe(name: str, seed: int = 0, **changes: Any) -> Any:
    """A float32 model with random weights, biases and sinks, in eval mode."""
    model_class, config_class, settings = TINY_MOE[name]
    torch.manual_seed(seed)
    model = model_class(config_class(**{**COMMON, **HEADS, **settings, **changes}))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("bias", "sinks")):
                parameter.normal_(std=0.5)
    return model.eval()


def quantise_experts(folder: Path) -> None:
    """Replace the experts in a folder by random ones in MXFP4: blocks of 32 values of 4 bits, with a scale each."""
    file, generator = folder / "model.safetensors", torch.Generator().manual_seed(0)
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, inputs, outputs = tensors.pop(name).shape
        shape = num_experts, outputs, inputs // 32
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        tensors[f"{name}_scales"] = torch.randint(120, 124, shape, dtype=torch.uint8, generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))


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


def channel_scores(model: Any, method: str = "wanda") -> Scores:
    """Scores of all groups, channels inside experts among them."""
    loaded = LoadedModel(Decoder(model), None, "float32")
    return score_model(loaded, method, TEXT, base_model="tiny", expert_channels=True)


def channels_plan(model: Any) -> PrunePlan:
    """Another number of experts in each layer, and of channels inside them; KV groups where they may leave."""
    geometry, rules = geometry_of(model).with_expert_channels(True), ShapeRules(min_mlp_width=8)
    table = channel_scores(model).ranked(geometry, RankingOptions(depth_slope=1.0))[0]
    return select_groups(table, geometry, budget_for_ratio(geometry, 0.5, rules, "decoder"), rules)


def last_hidden(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    """The hidden states after all layers."""
    hidden = decoder.embed(tokens)
    for index in range(decoder.num_layers):
        with decoder.layer(index) as module:
            hidden = decoder.call(module, hidden)
    return hidden
