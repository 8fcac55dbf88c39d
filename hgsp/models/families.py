"""The supported model families, one value each, and the module names that all of them share.

A new family is one value in ``FAMILIES`` plus its classes in a modelling file: see docs/ADDING_A_FAMILY.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hgsp.errors import InputError
from hgsp.models.blocks import ATTENTION_INPUTS, BLOCKS, MLP_INPUTS, MLP_OUTPUT, Block
from hgsp.models.experts import ExpertNames
from hgsp.models.unsupported import reason_against

LAYER_PREFIX = "model.layers."


FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


@dataclass(frozen=True)
class Family:
    """One model family: its name in transformers, the classes of its pruned form, and the parts of its models.

    Args:
        models: that people know the family by.
        model_type: of the dense models; with the prefix "hgsp_", of pruned ones.
        class_prefix: of the classes of pruned models.
        modeling_file: the module of this package that holds those classes.
        first_version: major and minor version of the first transformers that our classes work with.
        attention_types: values of the config's ``layer_types`` that the decoder can build masks for.
        per_layer_lists: config keys with one value per layer, which follow the layers that are left.
        width: the config key of the number of channels of an MLP.
        qk_norm: "head" for norms of queries and keys per head; "all heads" for one over all of them, whose RMS would
            change with the heads, so that KV groups are not removed. Empty: no such norms.
        query_width: rows of the query projection per row of a head: 2 with a gate on each head's output, interleaved.
        residual_multiplier: the config key of a factor on what every block adds to the residual stream.
        logit_softcap: the config key of the bound that is applied to the logits by tanh.
        logit_divisor: the config key of a number that divides the logits.
        scales_embedding: the embedding multiplies by its buffer ``embed_scale``.
        implied_head_dim: the stock config has no head dimension, and engines divide the hidden size by the heads.
        input_biases: whether all three input projections of attention have biases, whatever the config says.
        bias_keys: kind of block -> the config key that gives all its Linears biases.
        heads_divide_hidden: the stock config refuses numbers of heads that do not divide the hidden size.
        twin: another family that computes the same with any number of heads, but has no biases.
        beyond_llama: the part that formats written for a Llama block have no place for; empty if there is none.
        experts: names of a mixture of experts in checkpoint files; None for dense models.
        fused: Linears of stock layers that compute several projections, or one that we know by another name -> those,
            in the order of their rows.
        has_longrope: some models have rotary factors that change with the length of the text. Llama's formats have no
            place for them, and the stock config counts them by the hidden size over the heads.
        real_weights: the model on whose real weights it was tested; empty if on random ones only.
    """

    models: str
    model_type: str
    class_prefix: str
    modeling_file: str = "modeling_hgsp"
    blocks: Mapping[str, Block] = field(default_factory=lambda: BLOCKS)
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    first_version: tuple[int, int] = (5, 0)
    attention_types: frozenset[str] = frozenset({FULL, SLIDING})
    per_layer_lists: tuple[str, ...] = ("layer_types",)
    width: str = "intermediate_size"
    qk_norm: str = ""
    query_width: int = 1
    residual_multiplier: str | None = None
    logit_softcap: str | None = None
    logit_divisor: str | None = None
    scales_embedding: bool = False
    implied_head_dim: bool = False
    input_biases: bool = False
    bias_keys: Mapping[str, str] = field(default_factory=dict)
    heads_divide_hidden: bool = False
    twin: str | None = None
    beyond_llama: str = ""
    experts: ExpertNames | None = None
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    has_longrope: bool = False
    real_weights: str = ""

    @property
    def pruned_model_type(self) -> str:
        return f"{PRUNED_PREFIX}{self.model_type}"

    @property
    def prunes_kv_groups(self) -> bool:
        return self.qk_norm != "all heads"

    @property
    def is_hybrid(self) -> bool:
        return LINEAR in self.attention_types


PRUNED_PREFIX = "hgsp_"
_ATTENTION_BIAS = {"attention": "attention_bias"}
_ALL_BIASES = {**_ATTENTION_BIAS, "mlp": "mlp_bias"}

_GEMMA_BLOCKS = {
    "attention": replace(BLOCKS["attention"], post_norm="post_attention_layernorm"),
    "mlp": replace(BLOCKS["mlp"], norm="pre_feedforward_layernorm", post_norm="post_feedforward_layernorm"),
}
_OLMO_BLOCKS = {kind: replace(block, norm=None) for kind, block in _GEMMA_BLOCKS.items()}

_GEMMA: Mapping[str, Any] = {
    "modeling_file": "modeling_hgsp_gemma",
    "first_version": (5, 4),
    "blocks": _GEMMA_BLOCKS,
    "logit_softcap": "final_logit_softcapping",
    "scales_embedding": True,
    "bias_keys": _ATTENTION_BIAS,
    "heads_divide_hidden": True,
    "beyond_llama": "norms behind its blocks",
}
_GRANITE: Mapping[str, Any] = {
    "first_version": (5, 4),
    "attention_types": frozenset({FULL}),
    "residual_multiplier": "residual_multiplier",
    "logit_divisor": "logits_scaling",
    "beyond_llama": "multipliers of its embedding, blocks and logits",
}
_MOE: Mapping[str, Any] = {
    "modeling_file": "modeling_hgsp_moe",
    "attention_types": frozenset({FULL}),
    "beyond_llama": "experts",
    "experts": ExpertNames(),
}

_ALL = (
    Family(
        "Llama 2 to 3.3, SmolLM2",
        "llama",
        "HgspLlama",
        first_version=(4, 54),
        attention_types=frozenset({FULL}),
        bias_keys=_ALL_BIASES,
        heads_divide_hidden=True,
        twin="mistral",
        real_weights="SmolLM2 135M",
    ),
    Family(
        "Qwen2, Qwen2.5",
        "qwen2",
        "HgspQwen2",
        first_version=(4, 54),
        implied_head_dim=True,
        input_biases=True,
        real_weights="Qwen2.5 0.5B",
    ),
    Family("Mistral", "mistral", "HgspMistral", first_version=(4, 54), real_weights="SmolLM2 135M as Mistral"),
    Family("Qwen3", "qwen3", "HgspQwen3", first_version=(4, 54), qk_norm="head", bias_keys=_ATTENTION_BIAS),
    Family("Gemma 2", "gemma2", "HgspGemma2", **_GEMMA),
    Family("Gemma 3 (text)", "gemma3_text", "HgspGemma3", **_GEMMA, qk_norm="head", real_weights="Gemma 3 270M"),
    Family(
        "Ministral",
        "ministral",
        "HgspMinistral",
        "modeling_hgsp_ministral",
        beyond_llama="a sliding window in some layers",
    ),
    Family(
        "SmolLM3",
        "smollm3",
        "HgspSmolLM3",
        "modeling_hgsp_smollm3",
        per_layer_lists=("layer_types", "no_rope_layers"),
        bias_keys=_ALL_BIASES,
        beyond_llama="layers without rotary embeddings",
    ),
    Family("Granite 3 (dense)", "granite", "HgspGranite", "modeling_hgsp_granite", **_GRANITE, bias_keys=_ALL_BIASES),
    Family(
        "Granite 4 (dense)",
        "granitemoehybrid",
        "HgspGranite4",
        "modeling_hgsp_granite4",
        **{**_GRANITE, "first_version": (5, 17)},
        width="shared_intermediate_size",
        implied_head_dim=True,
        bias_keys=_ATTENTION_BIAS,
        fused={"shared_mlp.input_linear": MLP_INPUTS, "shared_mlp.output_linear": (MLP_OUTPUT,)},
    ),
    Family(
        "OLMo 2",
        "olmo2",
        "HgspOlmo2",
        "modeling_hgsp_olmo",
        first_version=(5, 6),
        blocks=_OLMO_BLOCKS,
        attention_types=frozenset({FULL}),
        qk_norm="all heads",
        bias_keys=_ATTENTION_BIAS,
        beyond_llama="norms behind its blocks",
    ),
    Family(
        "OLMo 3",
        "olmo3",
        "HgspOlmo3",
        "modeling_hgsp_olmo",
        first_version=(5, 6),
        blocks=_OLMO_BLOCKS,
        qk_norm="all heads",
        bias_keys=_ATTENTION_BIAS,
        beyond_llama="norms behind its blocks",
    ),
    Family(
        "Phi-3, Phi-4, Phi-4-mini",
        "phi3",
        "HgspPhi3",
        "modeling_hgsp_phi3",
        first_version=(5, 4),
        implied_head_dim=True,
        fused={"self_attn.qkv_proj": ATTENTION_INPUTS, "mlp.gate_up_proj": MLP_INPUTS},
        has_longrope=True,
    ),
    Family(
        "Qwen3.5, Qwen3.6 (text)",
        "qwen3_5_text",
        "HgspQwen35",
        "modeling_hgsp_qwen3_5",
        first_version=(5, 17),
        attention_types=frozenset({FULL, LINEAR}),
        qk_norm="head",
        query_width=2,
        bias_keys=_ATTENTION_BIAS,
        beyond_llama="linear attention in some layers",
    ),
    Family(
        "Qwen2-MoE",
        "qwen2_moe",
        "HgspQwen2Moe",
        **{**_MOE, "experts": ExpertNames(width="moe_intermediate_size")},
        implied_head_dim=True,
        input_biases=True,
    ),
    Family(
        "Qwen3-MoE",
        "qwen3_moe",
        "HgspQwen3Moe",
        **{**_MOE, "experts": ExpertNames(width="moe_intermediate_size")},
        qk_norm="head",
        bias_keys=_ATTENTION_BIAS,
    ),
    Family(
        "OLMoE", "olmoe", "HgspOlmoe", **_MOE, qk_norm="all heads", implied_head_dim=True, bias_keys=_ATTENTION_BIAS
    ),
    Family(
        "Mixtral", "mixtral", "HgspMixtral", **{**_MOE, "experts": ExpertNames("block_sparse_moe", "w1", "w3", "w2")}
    ),
    Family(
        "GPT-OSS",
        "gpt_oss",
        "HgspGptOss",
        **{**_MOE, "attention_types": frozenset({FULL, SLIDING}), "experts": ExpertNames(stacked=True)},
        bias_keys=_ATTENTION_BIAS,
    ),
)
FAMILIES = {family.model_type: family for family in _ALL}


def family_of(config: Any) -> Family:
    """Return the family of a dense or pruned model by its ``config.model_type``.

    Raises:
        InputError: the family is not supported.
    """
    family = family_named(config.model_type)
    if family is None:
        raise unsupported(config.to_dict())
    return family


def experts_of(config: Any) -> ExpertNames | None:
    """Return the names of experts in the files of a model; None for dense models and those of other families."""
    family = family_named(str(config.model_type))
    return None if family is None else family.experts


def is_pruned_type(model_type: str | None) -> bool:
    """Return whether a ``model_type`` is one of our classes with a size per layer."""
    return any(model_type == family.pruned_model_type for family in FAMILIES.values())


def family_named(model_type: str) -> Family | None:
    """Return the family of a dense or pruned ``model_type``, None if it is not supported."""
    return FAMILIES.get(model_type.removeprefix(PRUNED_PREFIX))


def unsupported(raw_config: Mapping[str, Any]) -> InputError:
    """Return the refusal of a model that belongs to no family, with what it lacks."""
    detail, remedy = reason_against(raw_config, FAMILIES)
    return InputError(
        expected=f"a supported architecture ({', '.join(FAMILIES)})",
        got=f"unsupported architecture '{raw_config.get('model_type')}'{detail}",
        remedy=remedy or "prune a dense model of one of these; `hgsp families` lists them",
    )
