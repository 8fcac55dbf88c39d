"""Llama, Qwen2, Mistral and Qwen3 decoders with a size per layer.

This file imports torch and transformers only and is copied into every checkpoint whose layers differ in size, so that
``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` works without ``hgsp``.

The config's ``per_layer_config`` holds the sizes: layer index -> ``num_attention_heads``, ``num_key_value_heads`` and
``intermediate_size`` where they differ from the global values, and ``"skip": ["attention"]`` or ``["mlp"]`` for a block
that the layer lacks. ``"writer_bias": true`` gives ``o_proj`` and ``down_proj`` a bias. Parameters keep stock names.
"""

from __future__ import annotations

import copy
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedModel


def checked_version(version: str) -> tuple[int, ...]:
    """Return major and minor version of transformers.

    Raises:
        ImportError: older than 4.54, whose models expect tuples from their layers and would fail in forward.
    """
    parsed = tuple(map(int, version.split(".")[:2]))
    if parsed < (4, 54):
        raise ImportError(f"expected transformers 4.54 or newer; got {version}; pip install 'transformers>=4.54'")
    return parsed


VERSION = checked_version(transformers.__version__)
LAYER_CLASSES = [f"Hgsp{family}DecoderLayer" for family in ("Llama", "Qwen2", "Mistral", "Qwen3")]

from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3


def layer_settings(config: Any, layer_idx: int) -> tuple[Any, frozenset[str]]:
    """Return the config that one layer is built from, and the blocks it lacks (``"attention"``, ``"mlp"``)."""
    per_layer = config.per_layer_config
    if isinstance(per_layer, dict):  # transformers without native per-layer configs
        overrides = {int(key): value for key, value in per_layer.items()}.get(layer_idx, {})
        settings = copy.copy(config)
        vars(settings).update(overrides)
    else:
        settings = per_layer[layer_idx]
    return settings, frozenset(getattr(settings, "skip", ()))


def _revalidate(cls: type) -> type:
    """Let a strict dataclass, which configs are in newer versions, collect the class's own validators."""
    if hasattr(cls, "__class_validators__"):
        from huggingface_hub.dataclasses import strict

        cls = strict(cls)
    return cls


class _PerLayerConfig:
    """Checks head counts per layer (the stock check reads global values) and reads rope settings of either version."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the config; transformers 4 gets the rope settings in the keys that it reads."""
        if VERSION < (5, 0) and (rope := dict(config_dict.get("rope_parameters") or {})):
            legacy = {"rope_theta": rope.pop("rope_theta")}
            config_dict = {**config_dict, **legacy, "rope_scaling": None if rope["rope_type"] == "default" else rope}
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def validate_architecture(self) -> None:
        for layer_idx in range(self.num_hidden_layers):  # type: ignore[attr-defined]
            settings, skip = layer_settings(self, layer_idx)
            queries, shared = settings.num_attention_heads, settings.num_key_value_heads
            if "attention" not in skip and queries % shared:
                raise ValueError(f"layer {layer_idx}: {queries} query heads cannot share {shared} KV heads evenly")


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

    _no_split_modules = LAYER_CLASSES
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
        self.num_cached_layers = cache_idx
        self.norm = self._norm_class(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = self._rotary_class(config=config)
        self.gradient_checkpointing = False
        self.has_sliding_layers = False
        self.post_init()


class _PerLayerHead(PreTrainedModel):
    """Such a decoder with a head; ``_head`` is its name, and the config's name for its number of rows."""

    _no_split_modules = LAYER_CLASSES
    _model_class: type
    _head: tuple[str, str]

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = self._model_class(config)
        self.vocab_size, self.num_labels = config.vocab_size, config.num_labels
        name, size = self._head
        setattr(self, name, nn.Linear(config.hidden_size, getattr(config, size), bias=False))
        self.post_init()


class _PerLayerCausalLM(_PerLayerHead):
    """A causal language model; with static caches that have room for the layers with attention only."""

    _head = ("lm_head", "vocab_size")

    def _get_static_cache_init_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Return None, which makes static caches lazy, if a layer has no attention: eager ones count every layer."""
        every_layer = self.model.num_cached_layers == len(self.model.layers)
        return super()._get_static_cache_init_shape(*args, **kwargs) if every_layer else None

    def _get_cache(self, *args: Any, **kwargs: Any) -> Any:
        """Return the static cache of transformers 4, which reads the batch size of every slot: none may stay empty."""
        if VERSION < (4, 56) and any("num_key_value_heads" in own for own in self.config.per_layer_config.values()):
            expected = "transformers 4.56 or newer for a static cache over layers with unequal KV heads"
            raise ValueError(f"expected {expected}; got {transformers.__version__}; use the default cache")
        cache = super()._get_cache(*args, **kwargs)
        del cache.layers[self.model.num_cached_layers :]
        return cache


class _PerLayerClassifier(_PerLayerHead):
    """A sequence classifier; pruned language models have no score head, which therefore starts at random."""

    _head = ("score", "num_labels")


@_revalidate
class HgspLlamaConfig(_PerLayerConfig, llama.LlamaConfig):
    model_type = "hgsp_llama"


class HgspLlamaDecoderLayer(_PerLayerDecoderLayer, llama.LlamaDecoderLayer):
    pass


class HgspLlamaModel(_PerLayerModel, llama.LlamaModel):
    config_class, _layer_class = HgspLlamaConfig, HgspLlamaDecoderLayer
    _norm_class, _rotary_class = llama.LlamaRMSNorm, llama.LlamaRotaryEmbedding


class HgspLlamaForCausalLM(_PerLayerCausalLM, llama.LlamaForCausalLM):
    config_class, _model_class = HgspLlamaConfig, HgspLlamaModel


class HgspLlamaForSequenceClassification(_PerLayerClassifier, llama.LlamaForSequenceClassification):
    config_class, _model_class = HgspLlamaConfig, HgspLlamaModel


@_revalidate
class HgspQwen2Config(_PerLayerConfig, qwen2.Qwen2Config):
    model_type = "hgsp_qwen2"


class HgspQwen2DecoderLayer(_PerLayerDecoderLayer, qwen2.Qwen2DecoderLayer):
    pass


class HgspQwen2Model(_PerLayerModel, qwen2.Qwen2Model):
    config_class, _layer_class = HgspQwen2Config, HgspQwen2DecoderLayer
    _norm_class, _rotary_class = qwen2.Qwen2RMSNorm, qwen2.Qwen2RotaryEmbedding


class HgspQwen2ForCausalLM(_PerLayerCausalLM, qwen2.Qwen2ForCausalLM):
    config_class, _model_class = HgspQwen2Config, HgspQwen2Model


class HgspQwen2ForSequenceClassification(_PerLayerClassifier, qwen2.Qwen2ForSequenceClassification):
    config_class, _model_class = HgspQwen2Config, HgspQwen2Model


@_revalidate
class HgspMistralConfig(_PerLayerConfig, mistral.MistralConfig):
    model_type = "hgsp_mistral"


class HgspMistralDecoderLayer(_PerLayerDecoderLayer, mistral.MistralDecoderLayer):
    pass


class HgspMistralModel(_PerLayerModel, mistral.MistralModel):
    config_class, _layer_class = HgspMistralConfig, HgspMistralDecoderLayer
    _norm_class, _rotary_class = mistral.MistralRMSNorm, mistral.MistralRotaryEmbedding


class HgspMistralForCausalLM(_PerLayerCausalLM, mistral.MistralForCausalLM):
    config_class, _model_class = HgspMistralConfig, HgspMistralModel


class HgspMistralForSequenceClassification(_PerLayerClassifier, mistral.MistralForSequenceClassification):
    config_class, _model_class = HgspMistralConfig, HgspMistralModel


@_revalidate
class HgspQwen3Config(_PerLayerConfig, qwen3.Qwen3Config):
    model_type = "hgsp_qwen3"


class HgspQwen3DecoderLayer(_PerLayerDecoderLayer, qwen3.Qwen3DecoderLayer):
    pass


class HgspQwen3Model(_PerLayerModel, qwen3.Qwen3Model):
    config_class, _layer_class = HgspQwen3Config, HgspQwen3DecoderLayer
    _norm_class, _rotary_class = qwen3.Qwen3RMSNorm, qwen3.Qwen3RotaryEmbedding


class HgspQwen3ForCausalLM(_PerLayerCausalLM, qwen3.Qwen3ForCausalLM):
    config_class, _model_class = HgspQwen3Config, HgspQwen3Model


class HgspQwen3ForSequenceClassification(_PerLayerClassifier, qwen3.Qwen3ForSequenceClassification):
    config_class, _model_class = HgspQwen3Config, HgspQwen3Model


#: Config, base model, causal language model and sequence classifier of every family.
FAMILY_CLASSES: tuple[tuple[Any, ...], ...] = (
    (HgspLlamaConfig, HgspLlamaModel, HgspLlamaForCausalLM, HgspLlamaForSequenceClassification),
    (HgspQwen2Config, HgspQwen2Model, HgspQwen2ForCausalLM, HgspQwen2ForSequenceClassification),
    (HgspMistralConfig, HgspMistralModel, HgspMistralForCausalLM, HgspMistralForSequenceClassification),
    (HgspQwen3Config, HgspQwen3Model, HgspQwen3ForCausalLM, HgspQwen3ForSequenceClassification),
)
AUTO_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")


def register() -> None:
    """Register our classes with the Auto classes of transformers, and let ``save_pretrained`` copy this file."""
    for config_class, *model_classes in FAMILY_CLASSES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        config_class.register_for_auto_class()
        for auto_class, model_class in zip(AUTO_CLASSES, model_classes, strict=True):
            getattr(transformers, auto_class).register(config_class, model_class, exist_ok=True)
            model_class.register_for_auto_class(auto_class)
