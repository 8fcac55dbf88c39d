"""Granite decoders with a size per layer; copied into their checkpoints beside ``modeling_hgsp.py``.

Multipliers scale the embedding, the attention scores, what each block adds to the residual stream, and the logits.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.granite import modeling_granite as granite

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


@revalidated
class HgspGraniteConfig(PerLayerConfig, granite.GraniteConfig):
    model_type = "hgsp_granite"


class HgspGraniteDecoderLayer(PerLayerDecoderLayer, granite.GraniteDecoderLayer): ...


class HgspGraniteModel(PerLayerModel, granite.GraniteModel):
    config_class, _layer_class = HgspGraniteConfig, HgspGraniteDecoderLayer
    _norm_class, _rotary_class = granite.GraniteRMSNorm, granite.GraniteRotaryEmbedding

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embedding_multiplier = config.embedding_multiplier


class HgspGraniteForCausalLM(PerLayerCausalLM, granite.GraniteForCausalLM):
    config_class, _model_class = HgspGraniteConfig, HgspGraniteModel


class HgspGraniteForSequenceClassification(
    PerLayerClassifier, GenericForSequenceClassification, granite.GranitePreTrainedModel
):
    config_class, _model_class = HgspGraniteConfig, HgspGraniteModel
