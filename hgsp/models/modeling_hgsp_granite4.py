"""Granite 4 (dense) decoders with a size per layer; copied into their checkpoints beside ``modeling_hgsp.py``.

Multipliers are those of Granite 3. Stock layers have gate and up in one Linear of the MLP that members with experts
share between all tokens; here it has Llama's names, so that a channel owns whole rows of whole matrices. Some models
have no rotary embeddings.
"""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.granite.configuration_granite import GraniteConfig
from transformers.models.granitemoehybrid import modeling_granitemoehybrid as granite4

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
class HgspGranite4Config(PerLayerConfig, granite4.GraniteMoeHybridConfig):
    model_type = "hgsp_granitemoehybrid"
    base_model_tp_plan = GraniteConfig.base_model_tp_plan


class HgspGranite4MLP(nn.Module):
    """An MLP with a Linear each for gate and up."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.shared_intermediate_size
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Any) -> Any:
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class UnfusedDecoderLayer(granite4.GraniteMoeHybridDecoderLayer):
    """A stock layer with this MLP."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        del self.shared_mlp
        self.mlp = HgspGranite4MLP(config)


class HgspGranite4DecoderLayer(PerLayerDecoderLayer, UnfusedDecoderLayer): ...


class HgspGranite4Model(PerLayerModel, granite4.GraniteMoeHybridModel):
    config_class, _layer_class = HgspGranite4Config, HgspGranite4DecoderLayer
    _norm_class, _rotary_class = granite4.GraniteMoeHybridRMSNorm, granite4.GraniteMoeHybridRotaryEmbedding

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embedding_multiplier = config.embedding_multiplier
        if config.position_embedding_type != "rope":
            self.rotary_emb = None


class HgspGranite4ForCausalLM(PerLayerCausalLM, granite4.GraniteMoeHybridForCausalLM):
    config_class, _model_class = HgspGranite4Config, HgspGranite4Model


class HgspGranite4ForSequenceClassification(
    PerLayerClassifier, GenericForSequenceClassification, granite4.GraniteMoeHybridPreTrainedModel
):
    config_class, _model_class = HgspGranite4Config, HgspGranite4Model
