"""Values that settings in the ``config.json`` of a supported family may have, checked before a model is built of them.

Transformers checks types at most; sizes without a limit, NaN, and a rotary base of 0 are found nowhere else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from hgsp.errors import InputError
from hgsp.models.families import family_named

#: Each layer of a model is built before its files are read, which takes some 10 ms.
MAX_LAYERS = 1_000
MAX_LABELS = 10_000
MAX_SIZE = 2**24
MAX_POSITIONS = 2**40
FLOATING = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Rule:
    """Values that a setting may have, in words and as a function."""

    expected: str
    holds: Callable[[Any], bool]


def _integer(low: int, high: int) -> Rule:
    return Rule(f"an integer from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def _number(expected: str, holds: Callable[[float], bool]) -> Rule:
    return Rule(expected, lambda value: type(value) in (int, float) and _is_finite(value) and holds(value))


def _is_finite(value: float) -> bool:
    return abs(value) <= 1e300 and not math.isnan(value)


def _choice(values: Any) -> Rule:
    return Rule(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def _is_token_id(value: Any) -> bool:
    return type(value) is int and -1 <= value <= MAX_SIZE


_SIZE, _BOOL = _integer(1, MAX_SIZE), Rule("true or false", lambda value: isinstance(value, bool))
_TOKEN_ID = Rule("a token id", _is_token_id)
_TOKEN_IDS = Rule(
    "a token id or a list of them",
    lambda value: all(map(_is_token_id, value)) if isinstance(value, list) else _is_token_id(value),
)
_ACTIVATION = Rule("a known activation", lambda value: isinstance(value, str) and value in ACT2FN)
_POSITIVE = _number("a finite number above 0", lambda value: value > 0)
_FINITE = _number("a finite number", lambda value: True)
_SMALL = _number("a number from 0 to 1", lambda value: 0 <= value <= 1)
_STRINGS = Rule(
    "a list of strings", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)
)

#: Settings of ``generation_config.json`` too.
TOKEN_IDS: Mapping[str, Rule] = {"bos_token_id": _TOKEN_ID, "pad_token_id": _TOKEN_ID, "eos_token_id": _TOKEN_IDS}
#: Setting -> its rule. A setting that is missing or null has the default of its architecture.
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "shared_intermediate_size", "vocab_size", "head_dim"), _SIZE),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), _SIZE),
    "num_labels": _integer(0, MAX_LABELS),  # transformers makes a name for each
    "num_hidden_layers": _integer(1, MAX_LAYERS),
    "max_position_embeddings": _integer(1, MAX_POSITIONS),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "attention_dropout", "partial_rotary_factor"), _SMALL),
    "initializer_range": _number("a finite number of at least 0", lambda value: value >= 0),
    "rope_theta": _POSITIVE,
    **dict.fromkeys(("attention_bias", "mlp_bias", "tie_word_embeddings", "use_cache", "writer_bias"), _BOOL),
    **dict.fromkeys(("hidden_act", "hidden_activation"), _ACTIVATION),
    **dict.fromkeys(("dtype", "torch_dtype"), _choice(FLOATING)),
    **TOKEN_IDS,
    **dict.fromkeys(("architectures", "layer_types"), _STRINGS),
}

#: Names of the number of experts.
EXPERTS = ("num_experts", "num_local_experts")
#: Settings of mixtures of experts; dense members of their families have some of them too, such as 0 experts.
_EXPERT_RULES: Mapping[str, Rule] = {
    **dict.fromkeys((*EXPERTS, "num_experts_per_tok", "moe_intermediate_size"), _SIZE),
    "decoder_sparse_step": _integer(1, MAX_LAYERS),
    "mlp_only_layers": Rule(
        "a list of layers", lambda value: isinstance(value, list) and all(type(item) is int for item in value)
    ),
}
#: Blocks that a layer of a pruned model may lack.
_BLOCKS = ("attention", "mlp")
_PER_LAYER: Mapping[str, Rule] = {
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), _SIZE),
    **dict.fromkeys(("intermediate_size", "shared_intermediate_size"), _SIZE),
    **{key: _EXPERT_RULES[key] for key in (*EXPERTS, "moe_intermediate_size")},
    "skip": Rule(
        f"a list of {' and '.join(_BLOCKS)}",
        lambda value: isinstance(value, list) and all(block in _BLOCKS for block in value),
    ),
}
_TYPES_OF_ROPE = _choice(sorted({"default", *ROPE_INIT_FUNCTIONS}))


def check_settings(raw: Mapping[str, Any], place: str) -> None:
    """Refuse the first setting whose value no model of the family can have.

    Args:
        raw: the content of ``config.json``.
        place: its name in the refusal.

    Raises:
        InputError: with key and value.
    """
    check_rules(raw, RULES, place)
    if _is_mixture(raw):
        check_rules(raw, _EXPERT_RULES, place)
    for key in ("rope_parameters", "rope_scaling"):
        if raw.get(key) is not None:
            _check_rope(raw[key], key, place)
    _check_layers(raw, place)
    _check_heads(raw, place)
    _check_experts(raw, place)


def check_rules(settings: Mapping[str, Any], rules: Mapping[str, Rule], place: str, prefix: str = "") -> None:
    """Refuse the first of the settings that breaks its rule.

    Raises:
        InputError: with key and value.
    """
    for key, rule in rules.items():
        value = settings.get(key)
        if value is not None and not rule.holds(value):
            raise wrong_setting(place, f"{prefix}{key}", rule.expected, value)


def wrong_setting(place: str, key: str, expected: str, value: Any) -> InputError:
    """Return the error about one setting, with its key and value."""
    return InputError(
        expected=f"{expected} as {key} in {place}",
        got=shown(value),
        remedy="correct it, or copy the file again from where the model is from",
    )


def shown(value: Any) -> str:
    """Return a value of JSON on one short line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _check_rope(rope: Any, key: str, place: str) -> None:
    """Check rotary settings; some families have one group of them per type of attention."""
    if not isinstance(rope, dict):
        raise wrong_setting(place, key, "an object", rope)
    for name, value in rope.items():
        where = f"{key}.{name}"
        if isinstance(value, dict):
            _check_rope(value, where, place)
        elif name == "rope_type":
            check_rules(rope, {name: _TYPES_OF_ROPE}, place, f"{key}.")
        elif name != "type" and value is not None and not isinstance(value, bool):
            rule = _POSITIVE if name in ("rope_theta", "factor") else _FINITE
            values = value if isinstance(value, list) and name.endswith("_factor") else [value]
            if not all(map(rule.holds, values)):
                raise wrong_setting(place, where, rule.expected, value)


def _check_layers(raw: Mapping[str, Any], place: str) -> None:
    per_layer = raw.get("per_layer_config")
    if per_layer is None:
        return
    if not isinstance(per_layer, dict):
        raise wrong_setting(place, "per_layer_config", "an object", per_layer)
    layers = range(raw.get("num_hidden_layers") or MAX_LAYERS)
    for index, sizes in per_layer.items():
        number = str(index)  # padded with zeros where there are ten layers or more
        if not (number.isascii() and number.isdigit() and int(number[:9]) in layers):
            raise wrong_setting(place, "per_layer_config", f"layers from 0 to {len(layers) - 1}", index)
        if not isinstance(sizes, dict):
            raise wrong_setting(place, f"per_layer_config.{index}", "an object", sizes)
        check_rules(sizes, _PER_LAYER, place, f"per_layer_config.{index}.")
        if "attention" not in (sizes.get("skip") or ()):
            _check_division({**raw, **sizes}, place)
        _check_experts({**raw, **sizes}, place, f"per_layer_config.{index}.")


def _check_heads(raw: Mapping[str, Any], place: str) -> None:
    hidden, heads, head_dim = (raw.get(key) for key in ("hidden_size", "num_attention_heads", "head_dim"))
    if head_dim is not None and head_dim % 2:
        raise wrong_setting(place, "head_dim", "an even number", head_dim)
    if head_dim is None and hidden and heads and (hidden % heads or hidden // heads % 2):
        raise wrong_setting(place, "num_attention_heads", f"a divisor of hidden_size {hidden} into even parts", heads)
    _check_division(raw, place)


def _check_experts(raw: Mapping[str, Any], place: str, prefix: str = "") -> None:
    used = raw.get("num_experts_per_tok") or 0
    for key in EXPERTS if _is_mixture(raw) else ():
        if raw.get(key) is not None and raw[key] < used:
            raise wrong_setting(place, f"{prefix}{key}", f"at least num_experts_per_tok {used}", raw[key])


def _is_mixture(raw: Mapping[str, Any]) -> bool:
    family = family_named(str(raw.get("model_type")))
    return family is not None and family.experts is not None


def _check_division(raw: Mapping[str, Any], place: str) -> None:
    heads, shared = raw.get("num_attention_heads"), raw.get("num_key_value_heads")
    if heads and shared and heads % shared:
        raise wrong_setting(place, "num_key_value_heads", f"a divisor of num_attention_heads {heads}", shared)
