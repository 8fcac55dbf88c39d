"""Phi-3 and Phi-4 decoders with a size per layer; copied into their checkpoints beside ``modeling_hgsp.py``.

Stock layers compute queries, keys and values in one Linear, and gate and up in another. Here each has a Linear of its
own with Llama's names, so that a group owns whole rows of whole matrices.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn
from transformers import LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mistral.modeling_mistral import MistralMLP
from transformers.models.phi3 import modeling_phi3 as phi3

from .modeling_hgsp import (
    PerLayerCausalLM,
    PerLayerClassifier,
    PerLayerConfig,
    PerLayerDecoderLayer,
    PerLayerModel,
    checked_version,
    layer_settings,
    revalidated,
)

checked_version(transformers.__version__, (5, 4))


@revalidated
class HgspPhi3Config(PerLayerConfig, phi3.Phi3Config):
    model_type = "hgsp_phi3"
    base_model_tp_plan = LlamaConfig.base_model_tp_plan

    def validate_rope(self) -> None:
        """Check the settings of one layer, and without the stock class's own check of the number of factors.

        Both read the number of heads; it has no global value, and the head dimension does not follow from it.
        """
        if getattr(self, "per_layer_config", None) is not None:  # transformers 5.4 to 5.15 set it after this check
            super(phi3.Phi3Config, layer_settings(self, 0)[0]).validate_rope()


class HgspPhi3Attention(phi3.Phi3Attention):
    """Attention with a Linear each for queries, keys and values."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        del self.qkv_proj
        sizes = config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads
        for name, num_heads in zip(("q_proj", "k_proj", "v_proj"), sizes, strict=True):
            setattr(self, name, nn.Linear(config.hidden_size, num_heads * self.head_dim, bias=False))
        self.output_dropout = config.resid_pdrop

    def forward(
        self,
        hidden_states: Any,
        position_embeddings: tuple[Any, Any],
        attention_mask: Any,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        projections = self.q_proj, self.k_proj, self.v_proj
        queries, keys, values = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for projection in projections
        )
        queries, keys = phi3.apply_rotary_pos_emb(queries, keys, *position_embeddings)
        if past_key_values is not None:
            keys, values = past_key_values.update(keys, values, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, phi3.eager_attention_forward)
        output, weights = attend(
            self,
            queries,
            keys,
            values,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.config.sliding_window,
            **kwargs,
        )
        output = self.o_proj(output.flatten(2))
        return nn.functional.dropout(output, self.output_dropout, self.training), weights


class HgspPhi3MLP(MistralMLP):
    """An MLP with a Linear each for gate and up."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.output_dropout = config.resid_pdrop

    def forward(self, hidden_states: Any) -> Any:
        return nn.functional.dropout(super().forward(hidden_states), self.output_dropout, self.training)


class UnfusedDecoderLayer(phi3.Phi3DecoderLayer):
    """A stock layer with these blocks, which drop out what the stock layer drops out behind them."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn, self.mlp = HgspPhi3Attention(config, layer_idx), HgspPhi3MLP(config)


class HgspPhi3DecoderLayer(PerLayerDecoderLayer, UnfusedDecoderLayer): ...


class HgspPhi3RotaryEmbedding(phi3.Phi3RotaryEmbedding):
    """The stock embedding, with the config of one layer: it reads the number of heads, which has no global value."""

    def __init__(self, config: Any) -> None:
        super().__init__(layer_settings(config, 0)[0])


class HgspPhi3Model(PerLayerModel, phi3.Phi3Model):
    config_class, _layer_class = HgspPhi3Config, HgspPhi3DecoderLayer
    _norm_class, _rotary_class = phi3.Phi3RMSNorm, HgspPhi3RotaryEmbedding


class HgspPhi3ForCausalLM(PerLayerCausalLM, phi3.Phi3ForCausalLM):
    config_class, _model_class = HgspPhi3Config, HgspPhi3Model


class HgspPhi3ForSequenceClassification(PerLayerClassifier, phi3.Phi3ForSequenceClassification):
    config_class, _model_class = HgspPhi3Config, HgspPhi3Model
