"""Decoders with a size per layer, and their classes for Llama, Qwen2, Mistral and Qwen3.

This file imports torch and transformers only and is copied into every checkpoint whose layers differ in size, so that
``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` works without ``hgsp``. Classes of other
families are in files beside it, ``modeling_hgsp_*.py``, one of which is copied too.

The config's ``per_layer_config`` holds the sizes: layer index -> ``num_attention_heads``, ``num_key_value_heads`` and
``intermediate_size`` where they differ from the global values, and ``"skip": ["attention"]`` or ``["mlp"]`` for a block
that the layer lacks. ``"writer_bias": true`` gives ``o_proj`` and ``down_proj`` a bias. Parameters keep stock names.
"""

from __future__ import annotations

import copy
from typing import Any

import transformers
from torch import nn
from transformers import PreTrainedModel


def checked_version(version: str, oldest: tuple[int, int] = (4, 54)) -> tuple[int, ...]:
    """Return major and minor version of transformers.

    Raises:
        ImportError: older than 4.54, whose models expect tuples from their layers, or than a family needs.
    """
    parsed, needed = tuple(map(int, version.split(".")[:2])), ".".join(map(str, oldest))
    if parsed < oldest:
        raise ImportError(
            f"expected transformers {needed} or newer; got {version}; pip install 'transformers>={needed}'"
        )
    return parsed


VERSION = checked_version(transformers.__version__)
#: Names in a layer of a block, the norm of its input and the norm of its output; None for a norm that it lacks.
Parts = tuple[str, str | None, str | None]

from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3


def layer_settings(config: Any, layer_idx: int) -> tuple[Any, frozenset[str]]:
    """Return the config that one layer is built from, and the blocks it lacks (``"attention"``, ``"mlp"``)."""
    per_layer = config.per_layer_config
    if isinstance(per_layer, dict):  # transformers without native per-layer configs
        settings = copy.copy(config)
        vars(settings).update({int(key): value for key, value in per_layer.items()}.get(layer_idx, {}))
    else:
        settings = per_layer[layer_idx]
    return settings, frozenset(getattr(settings, "skip", ()))


def revalidated(cls: type) -> type:
    """Let a strict dataclass, which configs are in newer versions, collect the class's own validators."""
    if hasattr(cls, "__class_validators__"):
        from huggingface_hub.dataclasses import strict

        cls = strict(cls)
    return cls


class PerLayerConfig:
    """Checks head counts per layer (the stock check reads global values) and reads rope settings of either version."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the config; transformers 4 gets the rope settings in the keys that it reads."""
        if VERSION < (5, 0) and (rope := dict(config_dict.get("rope_parameters") or {})):
            legacy = {"rope_theta": rope.pop("rope_theta")}
            config_dict = {**config_dict, **legacy, "rope_scaling": None if rope["rope_type"] == "default" else rope}
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def validate_architecture(self) -> None:
        if getattr(self, "per_layer_config", None) is None:  # transformers 5.4 to 5.15 set it after this check
            return
        for layer_idx in range(self.num_hidden_layers):  # type: ignore[attr-defined]
            settings, skip = layer_settings(self, layer_idx)
            queries, shared = settings.num_attention_heads, settings.num_key_value_heads
            if "attention" not in skip and queries % shared:
                raise ValueError(f"layer {layer_idx}: {queries} query heads cannot share {shared} KV heads evenly")


def cache_slots(config: Any) -> list[int | None]:
    """Return the slot of every layer in a KV cache, None for layers without attention.

    Slots have the types of ``config.layer_types``; layers with attention take the first slots of their type.
    """
    attends = ["attention" not in layer_settings(config, index)[1] for index in range(config.num_hidden_layers)]
    types = getattr(config, "layer_types", None) or [None] * len(attends)
    free = {kind: iter([slot for slot, own in enumerate(types) if own == kind]) for kind in types}
    return [next(free[kind]) if has else None for kind, has in zip(types, attends, strict=True)]


def residual_block(layer: Any, parts: Parts, hidden_states: Any, **kwargs: Any) -> Any:
    """Return the residual stream after one block of a layer; unchanged if the layer lacks it."""
    block, norm = getattr(layer, parts[0], None), parts[1]
    if block is None:
        return hidden_states
    output = block(hidden_states if norm is None else getattr(layer, norm)(hidden_states), **kwargs)
    return hidden_states + added_to_stream(layer, parts, output[0] if isinstance(output, tuple) else output)


def added_to_stream(layer: Any, parts: Parts, output: Any) -> Any:
    """Return the summand of the residual stream that a block's output becomes: normalised and scaled."""
    output = output if parts[2] is None else getattr(layer, parts[2])(output)
    multiplier = getattr(layer, "residual_multiplier", None)
    return output if multiplier is None else output * multiplier


class PerLayerDecoderLayer(nn.Module):
    """A stock decoder layer with its own sizes, possibly without attention or MLP."""

    self_attn: Any
    mlp: Any
    attention: Parts = ("self_attn", "input_layernorm", None)
    feed_forward: Parts = ("mlp", "post_attention_layernorm", None)

    def __init__(self, config: Any, layer_idx: int, cache_idx: int | None) -> None:
        settings, skip = layer_settings(config, layer_idx)
        super().__init__(settings, layer_idx)
        mixer = getattr(self, self.attention[0])
        mixer.config, mixer.layer_idx = config, cache_idx  # shared, so that set_attn_implementation() reaches it
        for name in filter(None, (*self.attention * ("attention" in skip), *self.feed_forward * ("mlp" in skip))):
            setattr(self, name, None)
        if getattr(config, "writer_bias", False):
            _give_bias(getattr(self, "self_attn", None), "o_proj")
            _give_bias(self.mlp, "down_proj")

    def forward(self, hidden_states: Any, **kwargs: Any) -> Any:
        hidden_states = residual_block(self, self.attention, hidden_states, **kwargs)
        return residual_block(self, self.feed_forward, hidden_states)


def _give_bias(block: Any, name: str) -> None:
    """Give a Linear of the block a bias, unless it has one or the layer lacks the block."""
    if block is not None and getattr(block, name).bias is None:
        linear = getattr(block, name)
        setattr(block, name, nn.Linear(linear.in_features, linear.out_features, bias=True))


class _WholeLayers(PreTrainedModel):
    """A model whose layers are never split over devices."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        layer_class = getattr(getattr(cls, "_model_class", cls), "_layer_class", None)
        cls._no_split_modules = [layer_class.__name__] if layer_class else []


class PerLayerModel(_WholeLayers):
    """A decoder of layers of different sizes, with the stock forward."""

    _layer_class: Any
    _norm_class: Any
    _rotary_class: Any

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = self._embedding(config)
        slots = cache_slots(config)
        self.layers = nn.ModuleList(self._layer_class(config, index, slot) for index, slot in enumerate(slots))
        self.num_cached_layers = sum(slot is not None for slot in slots)
        self.norm = self._norm_class(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = self._rotary_class(config=config)
        self.gradient_checkpointing = False
        self.has_sliding_layers = "sliding_attention" in (getattr(config, "layer_types", None) or ())
        self.post_init()

    def _embedding(self, config: Any) -> nn.Embedding:
        return nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)


class PerLayerHead(_WholeLayers):
    """Such a decoder with a head; ``_head`` is its name, and the config's name for its number of rows."""

    _model_class: Any
    _head: tuple[str, str]

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = self._model_class(config)
        self.vocab_size, self.num_labels = config.vocab_size, config.num_labels
        name, size = self._head
        setattr(self, name, nn.Linear(config.hidden_size, getattr(config, size), bias=False))
        self.post_init()


class PerLayerCausalLM(PerLayerHead):
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


class PerLayerClassifier(PerLayerHead):
    """A sequence classifier; pruned language models have no score head, which therefore starts at random."""

    _head = ("score", "num_labels")


@revalidated
class HgspLlamaConfig(PerLayerConfig, llama.LlamaConfig):
    model_type = "hgsp_llama"


class HgspLlamaDecoderLayer(PerLayerDecoderLayer, llama.LlamaDecoderLayer): ...


class HgspLlamaModel(PerLayerModel, llama.LlamaModel):
    config_class, _layer_class = HgspLlamaConfig, HgspLlamaDecoderLayer
    _norm_class, _rotary_class = llama.LlamaRMSNorm, llama.LlamaRotaryEmbedding


class HgspLlamaForCausalLM(PerLayerCausalLM, llama.LlamaForCausalLM):
    config_class, _model_class = HgspLlamaConfig, HgspLlamaModel


class HgspLlamaForSequenceClassification(PerLayerClassifier, llama.LlamaForSequenceClassification):
    config_class, _model_class = HgspLlamaConfig, HgspLlamaModel


@revalidated
class HgspQwen2Config(PerLayerConfig, qwen2.Qwen2Config):
    model_type = "hgsp_qwen2"


class HgspQwen2DecoderLayer(PerLayerDecoderLayer, qwen2.Qwen2DecoderLayer): ...


class HgspQwen2Model(PerLayerModel, qwen2.Qwen2Model):
    config_class, _layer_class = HgspQwen2Config, HgspQwen2DecoderLayer
    _norm_class, _rotary_class = qwen2.Qwen2RMSNorm, qwen2.Qwen2RotaryEmbedding


class HgspQwen2ForCausalLM(PerLayerCausalLM, qwen2.Qwen2ForCausalLM):
    config_class, _model_class = HgspQwen2Config, HgspQwen2Model


class HgspQwen2ForSequenceClassification(PerLayerClassifier, qwen2.Qwen2ForSequenceClassification):
    config_class, _model_class = HgspQwen2Config, HgspQwen2Model


@revalidated
class HgspMistralConfig(PerLayerConfig, mistral.MistralConfig):
    model_type = "hgsp_mistral"


class HgspMistralDecoderLayer(PerLayerDecoderLayer, mistral.MistralDecoderLayer): ...


class HgspMistralModel(PerLayerModel, mistral.MistralModel):
    config_class, _layer_class = HgspMistralConfig, HgspMistralDecoderLayer
    _norm_class, _rotary_class = mistral.MistralRMSNorm, mistral.MistralRotaryEmbedding


class HgspMistralForCausalLM(PerLayerCausalLM, mistral.MistralForCausalLM):
    config_class, _model_class = HgspMistralConfig, HgspMistralModel


class HgspMistralForSequenceClassification(PerLayerClassifier, mistral.MistralForSequenceClassification):
    config_class, _model_class = HgspMistralConfig, HgspMistralModel


@revalidated
class HgspQwen3Config(PerLayerConfig, qwen3.Qwen3Config):
    model_type = "hgsp_qwen3"


class HgspQwen3DecoderLayer(PerLayerDecoderLayer, qwen3.Qwen3DecoderLayer): ...


class HgspQwen3Model(PerLayerModel, qwen3.Qwen3Model):
    config_class, _layer_class = HgspQwen3Config, HgspQwen3DecoderLayer
    _norm_class, _rotary_class = qwen3.Qwen3RMSNorm, qwen3.Qwen3RotaryEmbedding


class HgspQwen3ForCausalLM(PerLayerCausalLM, qwen3.Qwen3ForCausalLM):
    config_class, _model_class = HgspQwen3Config, HgspQwen3Model


class HgspQwen3ForSequenceClassification(PerLayerClassifier, qwen3.Qwen3ForSequenceClassification):
    config_class, _model_class = HgspQwen3Config, HgspQwen3Model
