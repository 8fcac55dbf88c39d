"""SmolLM3 decoders with a size per layer; copied into their checkpoints beside ``modeling_hgsp.py``.

Some layers have no rotary embeddings: ``no_rope_layers`` of the config holds 0 for them.
"""

from __future__ import annotations

import transformers
from transformers.models.smollm3 import modeling_smollm3 as smollm3

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
class HgspSmolLM3Config(PerLayerConfig, smollm3.SmolLM3Config):
    model_type = "hgsp_smollm3"


class HgspSmolLM3DecoderLayer(PerLayerDecoderLayer, smollm3.SmolLM3DecoderLayer): ...


class HgspSmolLM3Model(PerLayerModel, smollm3.SmolLM3Model):
    config_class, _layer_class = HgspSmolLM3Config, HgspSmolLM3DecoderLayer
    _norm_class, _rotary_class = smollm3.SmolLM3RMSNorm, smollm3.SmolLM3RotaryEmbedding


class HgspSmolLM3ForCausalLM(PerLayerCausalLM, smollm3.SmolLM3ForCausalLM):
    config_class, _model_class = HgspSmolLM3Config, HgspSmolLM3Model


class HgspSmolLM3ForSequenceClassification(PerLayerClassifier, smollm3.SmolLM3ForSequenceClassification):
    config_class, _model_class = HgspSmolLM3Config, HgspSmolLM3Model
