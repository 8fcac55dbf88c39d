"""Qwen3-MoE, OLMoE and Mixtral decoders with a size per layer; it travels in checkpoints beside ``modeling_hgsp.py``.

In the config's ``per_layer_config``, ``num_experts`` (under the name that the stock config stores it by) is the number
of experts of a layer. Routers, the weights of experts and their names in files are those of the stock classes: the
router's softmax and its choice run over the experts that are left. Experts run by the implementation that the config
names, as in the stock classes (@use_experts_implementation).
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.olmoe import modeling_olmoe as olmoe
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe

from .modeling_hgsp import (
    AUTO_CLASSES,
    _PerLayerCausalLM,
    _PerLayerClassifier,
    _PerLayerConfig,
    _PerLayerDecoderLayer,
    _PerLayerModel,
    _revalidate,
)

LAYER_CLASSES = [f"Hgsp{family}DecoderLayer" for family in ("Qwen3Moe", "Olmoe", "Mixtral")]


class _PerLayerMoeDecoderLayer(_PerLayerDecoderLayer):
    """A stock decoder layer with its own number of experts, possibly without attention or MLP."""

    def __init__(self, config: Any, layer_idx: int, cache_idx: int) -> None:
        super().__init__(config, layer_idx, cache_idx)
        if hasattr(self.mlp, "experts"):
            self.mlp.experts.config = config  # shared, so that set_experts_implementation() reaches it


class _PerLayerMoeModel(_PerLayerModel):
    _no_split_modules = LAYER_CLASSES


class _PerLayerMoeCausalLM(_PerLayerCausalLM):
    """A causal language model without the load-balancing loss, which stock classes define for equal layers only."""

    _no_split_modules = LAYER_CLASSES

    def forward(self, *args: Any, output_router_logits: bool | None = None, **kwargs: Any) -> Any:
        if self.config.output_router_logits if output_router_logits is None else output_router_logits:
            raise ValueError(
                "layers with different numbers of experts have no load-balancing loss; use output_router_logits=False"
            )
        return super().forward(*args, output_router_logits=False, **kwargs)


@_revalidate
class HgspQwen3MoeConfig(_PerLayerConfig, qwen3_moe.Qwen3MoeConfig):
    model_type = "hgsp_qwen3_moe"


class HgspQwen3MoeDecoderLayer(_PerLayerMoeDecoderLayer, qwen3_moe.Qwen3MoeDecoderLayer):
    pass


class HgspQwen3MoeModel(_PerLayerMoeModel, qwen3_moe.Qwen3MoeModel):
    config_class, _layer_class = HgspQwen3MoeConfig, HgspQwen3MoeDecoderLayer
    _norm_class, _rotary_class = qwen3_moe.Qwen3MoeRMSNorm, qwen3_moe.Qwen3MoeRotaryEmbedding


class HgspQwen3MoeForCausalLM(_PerLayerMoeCausalLM, qwen3_moe.Qwen3MoeForCausalLM):
    config_class, _model_class = HgspQwen3MoeConfig, HgspQwen3MoeModel


class HgspQwen3MoeForSequenceClassification(_PerLayerClassifier, qwen3_moe.Qwen3MoeForSequenceClassification):
    config_class, _model_class = HgspQwen3MoeConfig, HgspQwen3MoeModel


@_revalidate
class HgspOlmoeConfig(_PerLayerConfig, olmoe.OlmoeConfig):
    model_type = "hgsp_olmoe"


class HgspOlmoeDecoderLayer(_PerLayerMoeDecoderLayer, olmoe.OlmoeDecoderLayer):
    pass


class HgspOlmoeModel(_PerLayerMoeModel, olmoe.OlmoeModel):
    config_class, _layer_class = HgspOlmoeConfig, HgspOlmoeDecoderLayer
    _norm_class, _rotary_class = olmoe.OlmoeRMSNorm, olmoe.OlmoeRotaryEmbedding


class HgspOlmoeForCausalLM(_PerLayerMoeCausalLM, olmoe.OlmoeForCausalLM):
    config_class, _model_class = HgspOlmoeConfig, HgspOlmoeModel


@_revalidate
class HgspMixtralConfig(_PerLayerConfig, mixtral.MixtralConfig):
    model_type = "hgsp_mixtral"


class HgspMixtralDecoderLayer(_PerLayerMoeDecoderLayer, mixtral.MixtralDecoderLayer):
    pass


class HgspMixtralModel(_PerLayerMoeModel, mixtral.MixtralModel):
    config_class, _layer_class = HgspMixtralConfig, HgspMixtralDecoderLayer
    _norm_class, _rotary_class = mixtral.MixtralRMSNorm, mixtral.MixtralRotaryEmbedding


class HgspMixtralForCausalLM(_PerLayerMoeCausalLM, mixtral.MixtralForCausalLM):
    config_class, _model_class = HgspMixtralConfig, HgspMixtralModel


class HgspMixtralForSequenceClassification(_PerLayerClassifier, mixtral.MixtralForSequenceClassification):
    config_class, _model_class = HgspMixtralConfig, HgspMixtralModel


#: Config, base model, causal language model and, where the stock family has one, sequence classifier.
MOE_CLASSES: tuple[tuple[Any, ...], ...] = (
    (HgspQwen3MoeConfig, HgspQwen3MoeModel, HgspQwen3MoeForCausalLM, HgspQwen3MoeForSequenceClassification),
    (HgspOlmoeConfig, HgspOlmoeModel, HgspOlmoeForCausalLM),
    (HgspMixtralConfig, HgspMixtralModel, HgspMixtralForCausalLM, HgspMixtralForSequenceClassification),
)


# Files name experts as those of the stock classes do; here, because without hgsp only this file is imported.
for _config_class, *_ in MOE_CLASSES:
    _mapping = get_checkpoint_conversion_mapping(_config_class.model_type.removeprefix("hgsp_"))
    register_checkpoint_conversion_mapping(_config_class.model_type, _mapping, overwrite=True)


def register() -> None:
    """Register our classes with the Auto classes, and let ``save_pretrained`` copy this file and the one beside it."""
    for config_class, *model_classes in MOE_CLASSES:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        config_class.register_for_auto_class()
        for auto_class, model_class in zip(AUTO_CLASSES, model_classes, strict=False):
            getattr(transformers, auto_class).register(config_class, model_class, exist_ok=True)
            model_class.register_for_auto_class(auto_class)
