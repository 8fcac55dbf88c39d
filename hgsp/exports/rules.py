"""Properties of a model that engines need, each with the change to the pruning command that gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from hgsp.errors import InputError
from hgsp.exports.gguf_architecture import architecture_of
from hgsp.exports.gguf_rope import check_rope
from hgsp.exports.nemotron_nas import check_nemotron_nas
from hgsp.exports.padding import smallest_layout
from hgsp.exports.parameters import biased_linears, biases_of
from hgsp.exports.source import ExportSource
from hgsp.exports.stock import stock_config
from hgsp.exports.uniform import sizes_of_mixture
from hgsp.models.families import LAYER_PREFIX, is_pruned_type


@dataclass(frozen=True)
class Rule:
    """A property that an engine needs.

    Args:
        need: the property.
        violation: returns how a model lacks it, or None.
        change: to the pruning command, which gives the property; empty where no flag does.
    """

    need: str
    violation: Callable[[ExportSource], str | None]
    change: str = ""


def widths(multiple: int) -> Rule:
    """Return the rule that MLP widths are multiples of a number."""

    def violation(source: ExportSource) -> str | None:
        odd = [index for index, shape in enumerate(source.shapes) if shape.mlp_width % multiple]
        if not odd:
            return None
        return f"width {source.shapes[odd[0]].mlp_width} in {_layers(odd)} is no multiple of {multiple}"

    return Rule(f"MLP widths in multiples of {multiple}", violation, f"--mlp_multiple_of {multiple}")


def columns(multiple: int) -> Rule:
    """Return the rule that hidden size and columns of ``o_proj``, which no flag rounds, are multiples of a number."""

    def violation(source: ExportSource) -> str | None:
        if source.hidden_size % multiple:
            return f"hidden size {source.hidden_size} is no multiple of {multiple}"
        counts = [shape.num_kv_groups * source.queries_per_kv * source.head_dim for shape in source.shapes]
        odd = [index for index, count in enumerate(counts) if count % multiple]
        return f"{counts[odd[0]]} columns of o_proj in {_layers(odd)} are no multiple of {multiple}" if odd else None

    return Rule(f"hidden size and columns of o_proj in multiples of {multiple}", violation)


def _unequal_layers(source: ExportSource) -> str | None:
    if source.is_uniform:
        return None
    if source.has_experts:
        return f"layers differ: {sizes_of_mixture(source.shapes)}"
    groups = _range(shape.num_kv_groups for shape in source.shapes)
    return f"layers differ: {groups} KV groups, {_range(shape.mlp_width for shape in source.shapes)} channels"


def _own_class(source: ExportSource) -> str | None:
    model_type = source.config["model_type"]
    return f"model_type {model_type}" if is_pruned_type(model_type) else None


def _check_stock(source: ExportSource) -> None:
    if source.is_uniform and not source.family.is_hybrid:
        stock_config(source, {f"{LAYER_PREFIX}0.{linear}.bias": () for linear in biased_linears(source)})


def _no_attention(source: ExportSource) -> str | None:
    missing = [index for index, shape in enumerate(source.shapes) if not shape.num_kv_groups]
    return f"no attention in {_layers(missing)}" if missing else None


def _unequal_groups(source: ExportSource) -> str | None:
    found = {shape.num_kv_groups for shape in source.shapes}
    return f"{_range(found)} KV groups" if len(found) > 1 else None


def _other_groups(source: ExportSource) -> str | None:
    found = {shape.num_kv_groups for shape in source.shapes}
    stored = int(source.config["num_attention_heads"]) // source.queries_per_kv
    return None if found == {stored} else f"{_range(found)} KV groups where config.json has {stored}"


def _narrow_qwen2(source: ExportSource) -> str | None:
    fewest = min(shape.num_kv_groups for shape in source.shapes) * source.queries_per_kv
    if not source.family.implied_head_dim or fewest * source.head_dim == source.hidden_size:
        return None
    return f"{fewest} query heads of {source.head_dim} for a hidden size of {source.hidden_size}"


def _beyond_llama(source: ExportSource) -> str | None:
    return f"{source.family.models} with {source.beyond_llama}" if source.beyond_llama else None


def _unchecked(source: ExportSource) -> str | None:
    untried = f"the projections of {source.family.models} one by one, which was not tried here"
    return _beyond_llama(source) or (untried if source.family.fused and _own_class(source) else None)


def _biases(source: ExportSource) -> str | None:
    return "biases" if any(biases_of(source)) else None


def _untried(source: ExportSource) -> str | None:
    return f"{source.untried}, which was not tried here" if source.untried else None


def _scaled_rope(source: ExportSource) -> str | None:
    kind = source.rope["rope_type"]
    return None if kind == "default" else f"rope type {kind}"


def _heads_beyond_hidden(source: ExportSource) -> str | None:
    """Violation of the engine that computes the head dimension from the hidden size: mlx-lm, for nemotron-nas."""
    queries, rest = divmod(source.hidden_size, source.head_dim)
    fit = all(smallest_layout(shape.num_kv_groups, source.queries_per_kv, queries) for shape in source.shapes)
    return None if fit and not rest else f"query heads of {source.head_dim} for a hidden size of {source.hidden_size}"


def _refused_by(*checks: Callable[[ExportSource], Any]) -> Callable[[ExportSource], str | None]:
    """Return the violation that the checks of an export find."""

    def violation(source: ExportSource) -> str | None:
        try:
            for check in checks:
                check(source)
        except InputError as error:
            return error.got
        return None

    return violation


UNIFORM = Rule("the same sizes in every layer", _unequal_layers, "--uniform")
STOCK_CLASS = Rule("a class of Transformers", _own_class)
STOCK_EXPORT = Rule("biases that a class of Transformers has", _refused_by(_check_stock))
ATTENTION = Rule("attention in every layer", _no_attention, "without --allow_empty_blocks")
EQUAL_GROUPS = Rule("the same KV groups in every layer", _unequal_groups, "--shapes_for tensorrt")
GROUPS_OF_CONFIG = Rule("the KV groups of config.json in every layer", _other_groups)
FULL_QWEN2 = Rule("all query heads, in Qwen2, Phi-3 and Granite 4", _narrow_qwen2)
NO_BIASES = Rule("no biases (Qwen2)", _biases)
GGUF_ROPE = Rule("a rope type of llama.cpp", _refused_by(check_rope))
GGUF_BLOCK = Rule("a block of llama.cpp", _refused_by(architecture_of), "--uniform")
LLAMA_BLOCK = Rule("a Llama block, with or without norms of queries and keys", _beyond_llama)
CHECKED_BLOCK = Rule("a block that its Transformers backend was checked with", _unchecked)
DECILM = Rule("a Llama block (no Qwen3)", _refused_by(check_nemotron_nas))
HEADS_IN_HIDDEN = Rule("query heads within the hidden size", _heads_beyond_hidden)
DENSE = Rule("no experts, no linear attention", _untried)
EXPERTS = Rule("experts", lambda source: None if source.has_experts else "no experts")
BEYOND_DENSE = Rule("experts or linear attention", lambda source: None if source.untried else "neither")
DEFAULT_ROPE = Rule("no rope scaling", _scaled_rope)


def _range(values: Iterable[int]) -> str:
    found = sorted(values)
    return f"{found[0]}" if found[0] == found[-1] else f"{found[0]}-{found[-1]}"


def _layers(indices: list[int]) -> str:
    return f"layer {indices[0]}" + (f" and {len(indices) - 1} more" if len(indices) > 1 else "")
