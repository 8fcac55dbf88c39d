"""The supported model families, one value each, and the module names that all of them share.

A new family is one value in ``FAMILIES`` plus its classes in ``modeling_hgsp.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hgsp.errors import InputError
from hgsp.models.experts import ExpertNames

LAYER_PREFIX = "model.layers."


@dataclass(frozen=True)
class Block:
    """One residual block of a decoder layer, ``x + module(norm(x))``, by the names of its parts in the layer.

    A group owns rows of the input projections and columns of the output projection. Everything else in the block
    (norms, output bias) is removed only with the whole block.
    """

    module: str
    norm: str
    input_projections: tuple[str, ...]
    output_projection: str


#: Kind of block -> its parts, in the order in which a layer calls them.
BLOCKS: Mapping[str, Block] = {
    "attention": Block(
        "self_attn", "input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"
    ),
    "mlp": Block("mlp", "post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
}
KINDS = tuple(BLOCKS)
OUTPUT_PROJECTIONS = {kind: block.output_projection for kind, block in BLOCKS.items()}

ATTENTION_INPUTS, ATTENTION_OUTPUT = BLOCKS["attention"].input_projections, OUTPUT_PROJECTIONS["attention"]
MLP_INPUTS, MLP_OUTPUT = BLOCKS["mlp"].input_projections, OUTPUT_PROJECTIONS["mlp"]
LINEARS = (*ATTENTION_INPUTS, ATTENTION_OUTPUT, *MLP_INPUTS, MLP_OUTPUT)


@dataclass(frozen=True)
class Family:
    """One model family: its names in transformers, the classes of its pruned form, and the parts of its models.

    ``attention_types`` are the values of the config's ``layer_types`` that the decoder can build masks for; others are
    refused. ``logit_softcap`` is the config key of the bound that is applied to the logits by tanh. ``experts`` are
    the names of a mixture of experts in checkpoint files, None for dense models. Of ``fixed_kinds`` of groups a layer
    keeps all or loses the whole block.
    """

    model_type: str
    pruned_model_type: str
    pruned_config: str
    pruned_model: str
    blocks: Mapping[str, Block] = field(default_factory=lambda: BLOCKS)
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    logit_softcap: str | None = None
    attention_types: frozenset[str] = frozenset({"full_attention"})
    experts: ExpertNames | None = None
    fixed_kinds: frozenset[str] = frozenset()


FAMILIES = {
    "llama": Family("llama", "hgsp_llama", "HgspLlamaConfig", "HgspLlamaForCausalLM"),
    "qwen2": Family("qwen2", "hgsp_qwen2", "HgspQwen2Config", "HgspQwen2ForCausalLM"),
    "mistral": Family("mistral", "hgsp_mistral", "HgspMistralConfig", "HgspMistralForCausalLM"),
    "qwen3": Family("qwen3", "hgsp_qwen3", "HgspQwen3Config", "HgspQwen3ForCausalLM"),
    "qwen3_moe": Family(
        "qwen3_moe", "hgsp_qwen3_moe", "HgspQwen3MoeConfig", "HgspQwen3MoeForCausalLM", experts=ExpertNames()
    ),
    "olmoe": Family(  # the norms of queries and keys span all heads, so that no head can leave alone
        "olmoe",
        "hgsp_olmoe",
        "HgspOlmoeConfig",
        "HgspOlmoeForCausalLM",
        experts=ExpertNames(),
        fixed_kinds=frozenset({"attention"}),
    ),
    "mixtral": Family(
        "mixtral",
        "hgsp_mixtral",
        "HgspMixtralConfig",
        "HgspMixtralForCausalLM",
        experts=ExpertNames("block_sparse_moe", "w1", "w3", "w2"),
    ),
}


def family_of(config: Any) -> Family:
    """Return the family of a dense or pruned model by its ``config.model_type``.

    Raises:
        InputError: the family is not supported.
    """
    family = _family_named(config.model_type)
    if family is None:
        raise _unsupported(config.model_type, "")
    return family


def check_prunable(raw_config: Mapping[str, Any]) -> None:
    """Refuse models that cannot be pruned.

    Args:
        raw_config: the content of ``config.json``, or the config object made from it as a dict.

    Raises:
        InputError: the architecture is not supported, has a sliding window, or its weights are quantised.
    """
    model_type = str(raw_config.get("model_type"))
    family = _family_named(model_type)
    if family is None:
        experts = raw_config.get("num_local_experts") or raw_config.get("num_experts") or "moe" in model_type
        raise _unsupported(model_type, " (mixture of experts)" if experts else "")
    if raw_config.get("quantization_config") is not None:
        raise InputError(
            expected="plain floating-point weights",
            got="already quantised weights",
            remedy="start from the bf16 checkpoint and quantise after pruning",
        )
    window = raw_config.get("sliding_window")
    found = f"sliding_window={window}" if window is not None and raw_config.get("use_sliding_window", True) else ""
    if others := sorted({*(raw_config.get("layer_types") or ())} - family.attention_types):
        found = found or f"layer_types has {others[0]}"
    if found:
        raise InputError(
            expected="full attention in every layer",
            got=f"sliding-window attention ({found})",
            remedy='use a version without it, such as Mistral-7B-v0.3, whose config.json has "sliding_window": null',
        )


def _family_named(model_type: str) -> Family | None:
    families = (family for family in FAMILIES.values() if model_type in (family.model_type, family.pruned_model_type))
    return next(families, None)


def _unsupported(model_type: str, detail: str) -> InputError:
    return InputError(
        expected=f"a supported architecture ({', '.join(FAMILIES)})",
        got=f"unsupported architecture '{model_type}'{detail}",
        remedy="prune a Llama, Qwen2/Qwen2.5, Qwen3, Mistral, Qwen3-MoE, OLMoE or Mixtral model",
    )
