"""Decoders with experts and a size per layer, of Qwen2 and 3, OLMoE, Mixtral and GPT-OSS; beside ``modeling_hgsp.py``.

In the config's ``per_layer_config``, ``num_experts`` (under the name that the stock config stores it by) is the number
of experts of a layer. Routers, the weights of experts and their names in files are those of the stock classes: the
router's softmax and its choice run over the experts that are left. Experts run by the implementation that the config
names, as in the stock classes (@use_experts_implementation).
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.olmoe import modeling_olmoe as olmoe
from transformers.models.qwen2_moe import modeling_qwen2_moe as qwen2_moe
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe

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


class PerLayerMoeDecoderLayer(PerLayerDecoderLayer):
    """A stock decoder layer with its own number of experts, possibly without attention or MLP."""

    def __init__(self, config: Any, layer_idx: int, cache_idx: int | None) -> None:
        super().__init__(config, layer_idx, cache_idx)
        if hasattr(self.mlp, "experts"):
            self.mlp.experts.config = config  # shared, so that set_experts_implementation() reaches it


class PerLayerMoeCausalLM(PerLayerCausalLM):
    """A causal language model without the load-balancing loss, which stock classes define for equal layers only."""

    def forward(self, *args: Any, output_router_logits: bool | None = None, **kwargs: Any) -> Any:
        if self.config.output_router_logits if output_router_logits is None else output_router_logits:
            raise ValueError(
                "layers with different numbers of experts have no load-balancing loss; use output_router_logits=False"
            )
        return super().forward(*args, output_router_logits=False, **kwargs)


@revalidated
class HgspQwen2MoeConfig(PerLayerConfig, qwen2_moe.Qwen2MoeConfig):
    model_type = "hgsp_qwen2_moe"


class HgspQwen2MoeDecoderLayer(PerLayerMoeDecoderLayer, qwen2_moe.Qwen2MoeDecoderLayer): ...


class HgspQwen2MoeModel(PerLayerModel, qwen2_moe.Qwen2MoeModel):
    config_class, _layer_class = HgspQwen2MoeConfig, HgspQwen2MoeDecoderLayer
    _norm_class, _rotary_class = qwen2_moe.Qwen2MoeRMSNorm, qwen2_moe.Qwen2MoeRotaryEmbedding


class HgspQwen2MoeForCausalLM(PerLayerMoeCausalLM, qwen2_moe.Qwen2MoeForCausalLM):
    config_class, _model_class = HgspQwen2MoeConfig, HgspQwen2MoeModel


class HgspQwen2MoeForSequenceClassification(PerLayerClassifier, qwen2_moe.Qwen2MoeForSequenceClassification):
    config_class, _model_class = HgspQwen2MoeConfig, HgspQwen2MoeModel


@revalidated
class HgspQwen3MoeConfig(PerLayerConfig, qwen3_moe.Qwen3MoeConfig):
    model_type = "hgsp_qwen3_moe"


class HgspQwen3MoeDecoderLayer(PerLayerMoeDecoderLayer, qwen3_moe.Qwen3MoeDecoderLayer): ...


class HgspQwen3MoeModel(PerLayerModel, qwen3_moe.Qwen3MoeModel):
    config_class, _layer_class = HgspQwen3MoeConfig, HgspQwen3MoeDecoderLayer
    _norm_class, _rotary_class = qwen3_moe.Qwen3MoeRMSNorm, qwen3_moe.Qwen3MoeRotaryEmbedding


class HgspQwen3MoeForCausalLM(PerLayerMoeCausalLM, qwen3_moe.Qwen3MoeForCausalLM):
    config_class, _model_class = HgspQwen3MoeConfig, HgspQwen3MoeModel


class HgspQwen3MoeForSequenceClassification(PerLayerClassifier, qwen3_moe.Qwen3MoeForSequenceClassification):
    config_class, _model_class = HgspQwen3MoeConfig, HgspQwen3MoeModel


@revalidated
class HgspOlmoeConfig(PerLayerConfig, olmoe.OlmoeConfig):
    model_type = "hgsp_olmoe"


class HgspOlmoeDecoderLayer(PerLayerMoeDecoderLayer, olmoe.OlmoeDecoderLayer): ...


class HgspOlmoeModel(PerLayerModel, olmoe.OlmoeModel):
    config_class, _layer_class = HgspOlmoeConfig, HgspOlmoeDecoderLayer
    _norm_class, _rotary_class = olmoe.OlmoeRMSNorm, olmoe.OlmoeRotaryEmbedding


class HgspOlmoeForCausalLM(PerLayerMoeCausalLM, olmoe.OlmoeForCausalLM):
    config_class, _model_class = HgspOlmoeConfig, HgspOlmoeModel


class HgspOlmoeForSequenceClassification(
    PerLayerClassifier, GenericForSequenceClassification, olmoe.OlmoePreTrainedModel
):
    config_class, _model_class = HgspOlmoeConfig, HgspOlmoeModel


@revalidated
class HgspMixtralConfig(PerLayerConfig, mixtral.MixtralConfig):
    model_type = "hgsp_mixtral"


class HgspMixtralDecoderLayer(PerLayerMoeDecoderLayer, mixtral.MixtralDecoderLayer): ...


class HgspMixtralModel(PerLayerModel, mixtral.MixtralModel):
    config_class, _layer_class = HgspMixtralConfig, HgspMixtralDecoderLayer
    _norm_class, _rotary_class = mixtral.MixtralRMSNorm, mixtral.MixtralRotaryEmbedding


class HgspMixtralForCausalLM(PerLayerMoeCausalLM, mixtral.MixtralForCausalLM):
    config_class, _model_class = HgspMixtralConfig, HgspMixtralModel


class HgspMixtralForSequenceClassification(PerLayerClassifier, mixtral.MixtralForSequenceClassification):
    config_class, _model_class = HgspMixtralConfig, HgspMixtralModel


@revalidated
class HgspGptOssConfig(PerLayerConfig, gpt_oss.GptOssConfig):
    model_type = "hgsp_gpt_oss"


class HgspGptOssDecoderLayer(PerLayerMoeDecoderLayer, gpt_oss.GptOssDecoderLayer): ...


class HgspGptOssModel(PerLayerModel, gpt_oss.GptOssModel):
    config_class, _layer_class = HgspGptOssConfig, HgspGptOssDecoderLayer
    _norm_class, _rotary_class = gpt_oss.GptOssRMSNorm, gpt_oss.GptOssRotaryEmbedding


class HgspGptOssForCausalLM(PerLayerMoeCausalLM, gpt_oss.GptOssForCausalLM):
    config_class, _model_class = HgspGptOssConfig, HgspGptOssModel


class HgspGptOssForSequenceClassification(PerLayerClassifier, gpt_oss.GptOssForSequenceClassification):
    config_class, _model_class = HgspGptOssConfig, HgspGptOssModel


# Files name experts as those of the stock classes do; here, because without hgsp only this file is imported.
for _stock, _config_class in (
    ("qwen2_moe", HgspQwen2MoeConfig),
    ("qwen3_moe", HgspQwen3MoeConfig),
    ("olmoe", HgspOlmoeConfig),
    ("mixtral", HgspMixtralConfig),
):
    register_checkpoint_conversion_mapping(
        _config_class.model_type, get_checkpoint_conversion_mapping(_stock), overwrite=True
    )
