"""OLMo 2 and 3 decoders with a size per layer; their blocks have a norm on the output. See ``modeling_hgsp.py``."""

from __future__ import annotations

import transformers
from transformers.models.olmo2 import modeling_olmo2 as olmo2
from transformers.models.olmo3 import modeling_olmo3 as olmo3

from .modeling_hgsp import (
    PerLayerCausalLM,
    PerLayerClassifier,
    PerLayerConfig,
    PerLayerDecoderLayer,
    PerLayerModel,
    checked_version,
    revalidated,
)

checked_version(transformers.__version__, (5, 6))


@revalidated
class HgspOlmo2Config(PerLayerConfig, olmo2.Olmo2Config):
    model_type = "hgsp_olmo2"


class HgspOlmo2DecoderLayer(PerLayerDecoderLayer, olmo2.Olmo2DecoderLayer):
    attention = ("self_attn", None, "post_attention_layernorm")
    feed_forward = ("mlp", None, "post_feedforward_layernorm")


class HgspOlmo2Model(PerLayerModel, olmo2.Olmo2Model):
    config_class, _layer_class = HgspOlmo2Config, HgspOlmo2DecoderLayer
    _norm_class, _rotary_class = olmo2.Olmo2RMSNorm, olmo2.Olmo2RotaryEmbedding


class HgspOlmo2ForCausalLM(PerLayerCausalLM, olmo2.Olmo2ForCausalLM):
    config_class, _model_class = HgspOlmo2Config, HgspOlmo2Model


class HgspOlmo2ForSequenceClassification(PerLayerClassifier, olmo2.Olmo2ForSequenceClassification):
    config_class, _model_class = HgspOlmo2Config, HgspOlmo2Model


@revalidated
class HgspOlmo3Config(PerLayerConfig, olmo3.Olmo3Config):
    model_type = "hgsp_olmo3"


class HgspOlmo3DecoderLayer(PerLayerDecoderLayer, olmo3.Olmo3DecoderLayer):
    attention, feed_forward = HgspOlmo2DecoderLayer.attention, HgspOlmo2DecoderLayer.feed_forward


class HgspOlmo3Model(PerLayerModel, olmo3.Olmo3Model):
    config_class, _layer_class = HgspOlmo3Config, HgspOlmo3DecoderLayer
    _norm_class, _rotary_class = olmo3.Olmo3RMSNorm, olmo3.Olmo3RotaryEmbedding


class HgspOlmo3ForCausalLM(PerLayerCausalLM, olmo3.Olmo3ForCausalLM):
    config_class, _model_class = HgspOlmo3Config, HgspOlmo3Model


class HgspOlmo3ForSequenceClassification(PerLayerClassifier, olmo3.Olmo3ForSequenceClassification):
    config_class, _model_class = HgspOlmo3Config, HgspOlmo3Model
