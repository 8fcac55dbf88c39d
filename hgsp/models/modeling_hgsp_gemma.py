"""Gemma 2 and Gemma 3 (text) decoders with a size per layer; copied into their checkpoints beside ``modeling_hgsp.py``.

Each block has a norm on its input and one on its output, and the embedding is scaled.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.gemma3 import modeling_gemma3 as gemma3

from .modeling_hgsp import (
    PerLayerCausalLM,
    PerLayerClassifier,
    PerLayerConfig,
    PerLayerDecoderLayer,
    PerLayerModel,
    checked_version,
    revalidated,
)

checked_version(transformers.__version__, (5, 4))


class _GemmaDecoderLayer(PerLayerDecoderLayer):
    attention = ("self_attn", "input_layernorm", "post_attention_layernorm")
    feed_forward = ("mlp", "pre_feedforward_layernorm", "post_feedforward_layernorm")


class _GemmaModel(PerLayerModel):
    _embedding_class: Any

    def _embedding(self, config: Any) -> Any:
        scale = config.hidden_size**0.5
        return self._embedding_class(config.vocab_size, config.hidden_size, config.pad_token_id, embed_scale=scale)


@revalidated
class HgspGemma2Config(PerLayerConfig, gemma2.Gemma2Config):
    model_type = "hgsp_gemma2"


class HgspGemma2DecoderLayer(_GemmaDecoderLayer, gemma2.Gemma2DecoderLayer): ...


class HgspGemma2Model(_GemmaModel, gemma2.Gemma2Model):
    config_class, _layer_class = HgspGemma2Config, HgspGemma2DecoderLayer
    _norm_class, _rotary_class = gemma2.Gemma2RMSNorm, gemma2.Gemma2RotaryEmbedding
    _embedding_class = gemma2.Gemma2TextScaledWordEmbedding


class HgspGemma2ForCausalLM(PerLayerCausalLM, gemma2.Gemma2ForCausalLM):
    config_class, _model_class = HgspGemma2Config, HgspGemma2Model


class HgspGemma2ForSequenceClassification(PerLayerClassifier, gemma2.Gemma2ForSequenceClassification):
    config_class, _model_class = HgspGemma2Config, HgspGemma2Model


@revalidated
class HgspGemma3Config(PerLayerConfig, gemma3.Gemma3TextConfig):
    model_type = "hgsp_gemma3_text"


class HgspGemma3DecoderLayer(_GemmaDecoderLayer, gemma3.Gemma3DecoderLayer): ...


class HgspGemma3Model(_GemmaModel, gemma3.Gemma3TextModel):
    config_class, _layer_class = HgspGemma3Config, HgspGemma3DecoderLayer
    _norm_class, _rotary_class = gemma3.Gemma3RMSNorm, gemma3.Gemma3RotaryEmbedding
    _embedding_class = gemma3.Gemma3TextScaledWordEmbedding


class HgspGemma3ForCausalLM(PerLayerCausalLM, gemma3.Gemma3ForCausalLM):
    config_class, _model_class = HgspGemma3Config, HgspGemma3Model


class HgspGemma3ForSequenceClassification(PerLayerClassifier, gemma3.Gemma3TextForSequenceClassification):
    config_class, _model_class = HgspGemma3Config, HgspGemma3Model
