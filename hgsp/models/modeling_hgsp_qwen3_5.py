"""Qwen3.5 (text) decoders with a size per layer; copied into their checkpoints beside ``modeling_hgsp.py``.

Most layers have linear attention (gated DeltaNet), which keeps its size; ``layer_types`` of the config names them.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen3_5

from .modeling_hgsp import (
    PerLayerCausalLM,
    PerLayerClassifier,
    PerLayerConfig,
    PerLayerDecoderLayer,
    PerLayerModel,
    checked_version,
    revalidated,
)

checked_version(transformers.__version__, (5, 17))


@revalidated
class HgspQwen35Config(PerLayerConfig, qwen3_5.Qwen3_5TextConfig):
    model_type = "hgsp_qwen3_5_text"


class HgspQwen35DecoderLayer(PerLayerDecoderLayer, qwen3_5.Qwen3_5DecoderLayer):
    """A layer of full or of linear attention."""

    def __init__(self, config: Any, layer_idx: int, cache_idx: int | None) -> None:
        self.is_linear = config.layer_types[layer_idx] == "linear_attention"
        if self.is_linear:
            self.attention = ("linear_attn", "input_layernorm", None)
        super().__init__(config, layer_idx, cache_idx)

    def forward(self, hidden_states: Any, **kwargs: Any) -> Any:
        """Return the hidden states after the layer; linear attention has no positions, and its cache another name."""
        if self.is_linear:
            cache = kwargs.pop("past_key_values", None)
            others = {key: value for key, value in kwargs.items() if not key.startswith("position_")}
            kwargs = {**others, "cache_params": cache}
        return super().forward(hidden_states, **kwargs)


class HgspQwen35Model(PerLayerModel, qwen3_5.Qwen3_5TextModel):
    config_class, _layer_class = HgspQwen35Config, HgspQwen35DecoderLayer
    _norm_class, _rotary_class = qwen3_5.Qwen3_5RMSNorm, qwen3_5.Qwen3_5TextRotaryEmbedding


class HgspQwen35ForCausalLM(PerLayerCausalLM, qwen3_5.Qwen3_5ForCausalLM):
    config_class, _model_class = HgspQwen35Config, HgspQwen35Model


class HgspQwen35ForSequenceClassification(PerLayerClassifier, qwen3_5.Qwen3_5TextForSequenceClassification):
    config_class, _model_class = HgspQwen35Config, HgspQwen35Model
