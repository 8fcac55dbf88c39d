"""The supported model families, one value each, and the module names they share.

Llama, Qwen2 and Mistral lay out a decoder layer the same way: ``self_attn.{q,k,v,o}_proj`` and
``mlp.{gate,up,down}_proj``. Adding a family is one value in ``FAMILIES`` plus its classes in ``modeling_hgsp.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hgsp.errors import InputError

#: Linears whose ROWS leave with a group, and the one whose COLUMNS leave with it.
ATTENTION_INPUTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION_OUTPUT = "self_attn.o_proj"
MLP_INPUTS = ("mlp.gate_proj", "mlp.up_proj")
MLP_OUTPUT = "mlp.down_proj"
LINEARS = (*ATTENTION_INPUTS, ATTENTION_OUTPUT, *MLP_INPUTS, MLP_OUTPUT)
LAYER_PREFIX = "model.layers."


@dataclass(frozen=True)
class Family:
    """One model family: what transformers calls it and which of our classes carries its pruned form."""

    model_type: str
    pruned_model_type: str
    pruned_config: str
    pruned_model: str


FAMILIES = {
    "llama": Family("llama", "hgsp_llama", "HgspLlamaConfig", "HgspLlamaForCausalLM"),
    "qwen2": Family("qwen2", "hgsp_qwen2", "HgspQwen2Config", "HgspQwen2ForCausalLM"),
    "mistral": Family("mistral", "hgsp_mistral", "HgspMistralConfig", "HgspMistralForCausalLM"),
}


def family_of(config: Any) -> Family:
    """The family of a dense or pruned model's config. ``config.model_type`` decides, never a class name."""
    for family in FAMILIES.values():
        if config.model_type in (family.model_type, family.pruned_model_type):
            return family
    raise _unsupported(config.model_type, "")


def check_prunable(raw_config: Mapping[str, Any]) -> None:
    """Refuse a model by its ``config.json``, or by the config object made from it, as a dict.

    Raises:
        InputError: the architecture is not supported, uses a sliding window, or is already quantised.
    """
    model_type = str(raw_config.get("model_type"))
    if model_type not in {
        name for family in FAMILIES.values() for name in (family.model_type, family.pruned_model_type)
    }:
        experts = raw_config.get("num_local_experts") or raw_config.get("num_experts") or "moe" in model_type
        raise _unsupported(model_type, " (mixture of experts)" if experts else "")
    if raw_config.get("quantization_config") is not None:
        raise InputError(
            expected="plain floating-point weights",
            got="already quantised weights",
            remedy="start from the bf16 checkpoint and quantise after pruning",
        )
    window = raw_config.get("sliding_window")
    if window is not None and raw_config.get("use_sliding_window", True):
        raise InputError(
            expected="full attention in every layer",
            got=f"sliding-window attention (sliding_window={window})",
            remedy='use a version without it, such as Mistral-7B-v0.3, whose config.json has "sliding_window": null',
        )


def _unsupported(model_type: str, detail: str) -> InputError:
    return InputError(
        expected=f"a supported architecture ({', '.join(FAMILIES)})",
        got=f"unsupported architecture '{model_type}'{detail}",
        remedy="prune a dense Llama, Qwen2/Qwen2.5 or Mistral model",
    )
