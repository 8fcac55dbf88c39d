"""Llama, Qwen2, Mistral and Qwen3 decoders with a size per layer.

This file imports torch and transformers only and is copied into every checkpoint whose layers differ in size, so that
``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` works without ``hgsp``.

The config's ``per_layer_config`` holds the sizes: layer index -> ``num_attention_heads``, ``num_key_value_heads`` and
``intermediate_size`` where they differ from the global values, and ``"skip": ["attention"]`` or ``["mlp"]`` for a block
that the layer lacks. ``"writer_bias": true`` gives ``o_proj`` and ``down_proj`` of every layer a bias. Parameters have
the names that the stock classes give them.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.mistral.configuration_mistral import MistralConfig
from transformers.models.mistral.modeling_mistral import (
    MistralDecoderLayer,
    MistralForCausalLM,
    MistralModel,
    MistralRMSNorm,
    MistralRotaryEmbedding,
)
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2DecoderLayer,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3DecoderLayer,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3RMSNorm,
    Qwen3RotaryEmbedding,
)


def layer_settings(config: Any, layer_idx: int) -> tuple[Any, frozenset[str]]:
    """Return the config that one layer is built from, and the blocks it lacks (``"attention"``, ``"mlp"``)."""
    per_layer = config.per_layer_config
    if isinstance(per_layer, dict):  # transformers without native per-layer configs
        overrides = {int(key): value for key, value in per_layer.items()}.get(layer_idx, {})
        settings = copy.copy(config)
        for key, value in overrides.items():
            setattr(settings, key, value)
    else:
        settings = per_layer[layer_idx]
    return settings, frozenset(getattr(settings, "skip", ()))


def _revalidate(cls: type) -> type:
    """Let a strict dataclass, which configs are in newer versions, collect the class's own validators."""
    if not hasattr(cls, "__class_validators__"):
        return cls
    from huggingface_hub.dataclasses import strict

    return strict(cls)


class _PerLayerConfig:
    """Checks head counts per layer; the stock check reads global values."""

    def validate_architecture(self) -> None:
        for layer_idx in range(self.num_hidden_layers):  # type: ignore[attr-defined]
            settings, skip = layer_settings(self, layer_idx)
            if "attention" not in skip and settings.num_attention_heads % settings.num_key_value_heads:
                raise ValueError(
                    f"layer {layer_idx}: {settings.num_attention_heads} query heads cannot share "
                    f"{settings.num_key_value_heads} KV heads evenly"
                )


def residual_block(block: Any, norm: Any, hidden_states: Any, **kwargs: Any) -> Any:
    """Return ``hidden_states + block(norm(hidden_states))``; unchanged without a block."""
    if block is None:
        return hidden_states
    output = block(norm(hidden_states), **kwargs)
    return hidden_states + (output[0] if isinstance(output, tuple) else output)


class _PerLayerDecoderLayer(nn.Module):
    """A stock decoder layer with its own sizes, possibly without attention or MLP."""

    self_attn: Any
    input_layernorm: Any
    mlp: Any
    post_attention_layernorm: Any

    def __init__(self, config: Any, layer_idx: int, cache_idx: int) -> None:
        settings, skip = layer_settings(config, layer_idx)
        super().__init__(settings, layer_idx)
        if "attention" in skip:
            self.self_attn = self.input_layernorm = None
        else:
            self.self_attn.config = config  # shared, so that set_attn_implementation() reaches it
            self.self_attn.layer_idx = cache_idx
        if "mlp" in skip:
            self.mlp = self.post_attention_layernorm = None
        if getattr(config, "writer_bias", False):
            _give_bias(self.self_attn, "o_proj")
            _give_bias(self.mlp, "down_proj")

    def forward(self, hidden_states: Any, **kwargs: Any) -> Any:
        hidden_states = residual_block(self.self_attn, self.input_layernorm, hidden_states, **kwargs)
        return residual_block(self.mlp, self.post_attention_layernorm, hidden_states)


def _give_bias(block: Any, name: str) -> None:
    """Give a Linear of the block a bias, unless it has one or the layer lacks the block."""
    if block is not None and getattr(block, name).bias is None:
        linear = getattr(block, name)
        setattr(block, name, nn.Linear(linear.in_features, linear.out_features, bias=True))


class _PerLayerModel(PreTrainedModel):
    """A decoder of layers of different sizes, with the stock forward.

    The KV cache is indexed by the rank of a layer among those WITH attention, so that no cache slot stays empty.
    """

    _layer_class: type
    _norm_class: type
    _rotary_class: type

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layers, cache_idx = [], 0
        for layer_idx in range(config.num_hidden_layers):
            layers.append(self._layer_class(config, layer_idx, cache_idx))
            cache_idx += layers[-1].self_attn is not None
        self.layers = nn.ModuleList(layers)
        self.norm = self._norm_class(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = self._rotary_class(config=config)
        self.gradient_checkpointing = False
        self.has_sliding_layers = False
        self.post_init()


class _PerLayerCausalLM(PreTrainedModel):
    """A causal language model with such a decoder."""

    _model_class: type

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = self._model_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _get_static_cache_init_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Return None, which makes static caches lazy, if a layer has no attention: eager ones count every layer."""
        if any(layer.self_attn is None for layer in self.model.layers):
            return None
        return super()._get_static_cache_init_shape(*args, **kwargs)


@_revalidate
class HgspLlamaConfig(_PerLayerConfig, LlamaConfig):
    model_type = "hgsp_llama"


class HgspLlamaDecoderLayer(_PerLayerDecoderLayer, LlamaDecoderLayer):
    pass


class HgspLlamaModel(_PerLayerModel, LlamaModel):
    config_class = HgspLlamaConfig
    _no_split_modules = ["HgspLlamaDecoderLayer"]
    _layer_class, _norm_class, _rotary_class = HgspLlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding


class HgspLlamaForCausalLM(_PerLayerCausalLM, LlamaForCausalLM):
    config_class = HgspLlamaConfig
    _no_split_modules = ["HgspLlamaDecoderLayer"]
    _model_class = HgspLlamaModel


@_revalidate
class HgspQwen2Config(_PerLayerConfig, Qwen2Config):
    model_type = "hgsp_qwen2"


class HgspQwen2DecoderLayer(_PerLayerDecoderLayer, Qwen2DecoderLayer):
    pass


class HgspQwen2Model(_PerLayerModel, Qwen2Model):
    config_class = HgspQwen2Config
    _no_split_modules = ["HgspQwen2DecoderLayer"]
    _layer_class, _norm_class, _rotary_class = HgspQwen2DecoderLayer, Qwen2RMSNorm, Qwen2RotaryEmbedding


class HgspQwen2ForCausalLM(_PerLayerCausalLM, Qwen2ForCausalLM):
    config_class = HgspQwen2Config
    _no_split_modules = ["HgspQwen2DecoderLayer"]
    _model_class = HgspQwen2Model


@_revalidate
class HgspMistralConfig(_PerLayerConfig, MistralConfig):
    model_type = "hgsp_mistral"


class HgspMistralDecoderLayer(_PerLayerDecoderLayer, MistralDecoderLayer):
    pass


class HgspMistralModel(_PerLayerModel, MistralModel):
    config_class = HgspMistralConfig
    _no_split_modules = ["HgspMistralDecoderLayer"]
    _layer_class, _norm_class, _rotary_class = HgspMistralDecoderLayer, MistralRMSNorm, MistralRotaryEmbedding


class HgspMistralForCausalLM(_PerLayerCausalLM, MistralForCausalLM):
    config_class = HgspMistralConfig
    _no_split_modules = ["HgspMistralDecoderLayer"]
    _model_class = HgspMistralModel


@_revalidate
class HgspQwen3Config(_PerLayerConfig, Qwen3Config):
    model_type = "hgsp_qwen3"


class HgspQwen3DecoderLayer(_PerLayerDecoderLayer, Qwen3DecoderLayer):
    pass


class HgspQwen3Model(_PerLayerModel, Qwen3Model):
    config_class = HgspQwen3Config
    _no_split_modules = ["HgspQwen3DecoderLayer"]
    _layer_class, _norm_class, _rotary_class = HgspQwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding


class HgspQwen3ForCausalLM(_PerLayerCausalLM, Qwen3ForCausalLM):
    config_class = HgspQwen3Config
    _no_split_modules = ["HgspQwen3DecoderLayer"]
    _model_class = HgspQwen3Model


FAMILY_CLASSES = (
    (HgspLlamaConfig, HgspLlamaModel, HgspLlamaForCausalLM),
    (HgspQwen2Config, HgspQwen2Model, HgspQwen2ForCausalLM),
    (HgspMistralConfig, HgspMistralModel, HgspMistralForCausalLM),
    (HgspQwen3Config, HgspQwen3Model, HgspQwen3ForCausalLM),
)


def register() -> None:
    """Register our classes with the Auto classes of transformers, and let ``save_pretrained`` copy this file."""
    for config_class, model_class, causal_lm_class in FAMILY_CLASSES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, causal_lm_class, exist_ok=True)
        config_class.register_for_auto_class()
        model_class.register_for_auto_class("AutoModel")
        causal_lm_class.register_for_auto_class("AutoModelForCausalLM")
