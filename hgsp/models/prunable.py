"""The refusal of models that cannot be pruned, by their config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hgsp.errors import InputError
from hgsp.models.families import FULL, SLIDING, Family, family_named, unsupported
from hgsp.models.family_classes import check_installed
from hgsp.models.unsupported import is_mixture

#: Kinds of layers by the names of earlier configs.
_EARLIER = {"attention": FULL}
#: Methods of quantised checkpoints that are de-quantised on request.
_DEQUANTISED = {"mxfp4": "prune it de-quantised to bfloat16: --dequantize, in Python load(..., dequantize=True)"}


def check_prunable(raw_config: Mapping[str, Any], *, dequantize: bool = False) -> None:
    """Refuse models that cannot be pruned.

    Args:
        raw_config: the content of ``config.json``, or the config object made from it as a dict.
        dequantize: accept a model in MXFP4.

    Raises:
        InputError: the architecture is not supported, at all or by the installed transformers, has layers or experts
            that its family lacks, or its weights are quantised.
    """
    family = family_named(str(raw_config.get("model_type")))
    if family is None:
        raise unsupported(raw_config)
    check_installed(family)
    if raw_config.get("quantization_config") is not None:
        remedy = _DEQUANTISED.get(_method_of(raw_config))
        if remedy is None or not dequantize:
            raise InputError(
                expected="plain floating-point weights",
                got="already quantised weights",
                remedy=remedy or "start from the bf16 checkpoint and quantise after pruning",
            )
    if (refusal := beyond_family(raw_config, family)) is not None:
        raise refusal
    if raw_config.get("use_bidirectional_attention"):
        raise InputError(
            expected="a causal language model",
            got="attention in both directions (use_bidirectional_attention)",
            remedy="prune the model that generates text, not the one for embeddings",
        )


def beyond_family(raw_config: Mapping[str, Any], family: Family) -> InputError | None:
    """Return the refusal of a model with layers or experts that its family lacks; None for all others."""
    if family.experts is None and is_mixture(raw_config):
        return InputError(
            expected=f"a model of the family {family.models}",
            got="a mixture of experts",
            remedy="prune a member of the family without experts",
        )
    types = {_EARLIER.get(kind, kind) for kind in raw_config.get("layer_types") or ()}
    if raw_config.get("sliding_window") is not None and raw_config.get("use_sliding_window", True):
        types.add(SLIDING)
    if others := sorted(types - family.attention_types):
        return InputError(
            expected=f"{' or '.join(sorted(family.attention_types))} in every layer of a {family.model_type} model",
            got=others[0],
            remedy="check layer_types and sliding_window in config.json, or prune a member of the family without such "
            "layers",
        )
    return None


def _method_of(raw_config: Mapping[str, Any]) -> str:
    quantisation = raw_config["quantization_config"]
    return str(quantisation.get("quant_method")) if isinstance(quantisation, Mapping) else ""
