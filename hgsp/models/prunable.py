"""The refusal of models that cannot be pruned, by their config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hgsp.errors import InputError
from hgsp.models.families import SLIDING, family_named, unsupported


def check_prunable(raw_config: Mapping[str, Any]) -> None:
    """Refuse models that cannot be pruned.

    Args:
        raw_config: the content of ``config.json``, or the config object made from it as a dict.

    Raises:
        InputError: the architecture is not supported, has a kind of attention that its family lacks, or its weights are
            quantised.
    """
    family = family_named(str(raw_config.get("model_type")))
    if family is None:
        raise unsupported(raw_config)
    if raw_config.get("quantization_config") is not None:
        raise InputError(
            expected="plain floating-point weights",
            got="already quantised weights",
            remedy="start from the bf16 checkpoint and quantise after pruning",
        )
    types = {*(raw_config.get("layer_types") or ())}
    if raw_config.get("sliding_window") is not None and raw_config.get("use_sliding_window", True):
        types.add(SLIDING)
    if others := sorted(types - family.attention_types):
        raise InputError(
            expected=f"{' or '.join(sorted(family.attention_types))} in every layer of a {family.model_type} model",
            got=others[0],
            remedy="check layer_types and sliding_window in config.json",
        )
    if raw_config.get("use_bidirectional_attention"):
        raise InputError(
            expected="a causal language model",
            got="attention in both directions (use_bidirectional_attention)",
            remedy="prune the model that generates text, not the one for embeddings",
        )
