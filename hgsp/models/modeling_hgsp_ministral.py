"""Ministral decoders with a size per layer; copied into their checkpoints beside ``modeling_hgsp.py``."""

from __future__ import annotations

import transformers
from transformers.models.ministral import modeling_ministral as ministral

from .modeling_hgsp import (
    PerLayerCausalLM,
    PerLayerClassifier,
    PerLayerConfig,
    PerLayerDecoderLayer,
    PerLayerModel,
    checked_version,
    revalidated,
)

checked_version(transformers.__version__, (5, 0))


@revalidated
class HgspMinistralConfig(PerLayerConfig, ministral.MinistralConfig):
    model_type = "hgsp_ministral"


class HgspMinistralDecoderLayer(PerLayerDecoderLayer, ministral.MinistralDecoderLayer): ...


class HgspMinistralModel(PerLayerModel, ministral.MinistralModel):
    config_class, _layer_class = HgspMinistralConfig, HgspMinistralDecoderLayer
    _norm_class, _rotary_class = ministral.MinistralRMSNorm, ministral.MinistralRotaryEmbedding


class HgspMinistralForCausalLM(PerLayerCausalLM, ministral.MinistralForCausalLM):
    config_class, _model_class = HgspMinistralConfig, HgspMinistralModel


class HgspMinistralForSequenceClassification(PerLayerClassifier, ministral.MinistralForSequenceClassification):
    config_class, _model_class = HgspMinistralConfig, HgspMinistralModel
