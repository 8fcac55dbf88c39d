"""Properties of a model that engines need, each with the flags of a pruning run whose result has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hgsp.export.parameters import biases_of, has_qk_norms
from hgsp.export.source import ExportSource
from hgsp.models.families import FAMILIES


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


def _unequal_layers(source: ExportSource) -> str | None:
    if source.is_uniform:
        return None
    widths = _range(shape.mlp_width for shape in source.shapes)
    return f"layers differ: {_range(shape.num_kv_groups for shape in source.shapes)} KV groups, {widths} channels"


def _own_class(source: ExportSource) -> str | None:
    model_type = source.config["model_type"]
    return None if model_type in FAMILIES else f"model_type {model_type} is a class of hgsp"


def _no_attention(source: ExportSource) -> str | None:
    return _layers("without attention", (i for i, shape in enumerate(source.shapes) if not shape.num_kv_groups))


def _no_first_attention(source: ExportSource) -> str | None:
    return None if source.shapes[0].num_kv_groups else "layer 0 without attention"


def _no_mlp(source: ExportSource) -> str | None:
    return _layers("without an MLP", (i for i, shape in enumerate(source.shapes) if not shape.mlp_width))


def _unequal_attention(source: ExportSource) -> str | None:
    found = {shape.num_kv_groups for shape in source.shapes}
    if len(found) > 1:
        return f"{_range(found)} KV groups"
    dense = int(source.config["num_attention_heads"]) // source.queries_per_kv
    return None if found == {dense} else f"{_range(found)} KV groups, config.json has {dense}"


def _padded_hidden(source: ExportSource) -> str | None:
    queries = {shape.num_kv_groups * source.queries_per_kv for shape in source.shapes}
    narrow = {count for count in queries if count * source.head_dim != source.hidden_size}
    if source.family.model_type != "qwen2" or not narrow:
        return None
    return f"{max(narrow)} query heads of {source.head_dim} for a hidden size of {source.hidden_size}"


def _attention_biases(source: ExportSource) -> str | None:
    return "biases of q, k and v" if biases_of(source).qkv else None


def _outside_llama_cpp(source: ExportSource) -> str | None:
    if not has_qk_norms(source) or source.is_uniform:
        return None
    if not source.ties_embeddings:
        return "norms of queries and keys, a size per layer and a head of its own"
    return "norms of queries and keys, a size per layer and biases" if biases_of(source).qkv else None


def _outside_decilm(source: ExportSource) -> str | None:
    biases = biases_of(source)
    if has_qk_norms(source):
        return "norms of queries and keys"
    return "biases of o_proj or down_proj" if biases.o_proj or biases.down_proj else None


def _outside_mlx(source: ExportSource) -> str | None:
    if (kind := source.rope["rope_type"]) != "default":
        return f"rope scaling {kind}"
    biases = biases_of(source)
    return "biases" if biases.qkv or biases.o_proj or biases.down_proj else None


UNIFORM = Rule("the same sizes in every layer", _unequal_layers, "--uniform")
STOCK_CLASS = Rule("a model class of Transformers", _own_class, "--uniform")
ATTENTION = Rule("attention in every layer", _no_attention, "no --allow_empty_blocks")
FIRST_ATTENTION = Rule("attention in layer 0", _no_first_attention, "--freeze_first_n_layers 1")
MLP = Rule("an MLP in every layer", _no_mlp, "no --allow_empty_blocks")
EQUAL_ATTENTION = Rule("the KV groups of config.json in every layer", _unequal_attention, "--uniform")
HEADS_FILL_HIDDEN = Rule("query heads that fill the hidden size, in Qwen2", _padded_hidden)
NO_ATTENTION_BIASES = Rule("no biases of q, k and v (Qwen2)", _attention_biases)
GGUF = Rule("a block that llama.cpp knows", _outside_llama_cpp, "--uniform")
DECILM = Rule("a block that DeciLM knows (no Qwen3)", _outside_decilm, "--uniform")
MLX = Rule("no biases, no rope scaling", _outside_mlx, "--uniform")


def widths(multiple: int) -> Rule:
    """Return the rule that MLP widths are multiples of a number."""

    def violation(source: ExportSource) -> str | None:
        odd = [index for index, shape in enumerate(source.shapes) if shape.mlp_width % multiple]
        if not odd:
            return None
        width = source.shapes[odd[0]].mlp_width
        return f"width {width} in layer {odd[0]}{_more(odd)} is no multiple of {multiple}"

    return Rule(f"MLP widths in multiples of {multiple}", violation, f"--mlp_multiple_of {multiple}")


def columns(multiple: int) -> Rule:
    """Return the rule that hidden size and columns of ``o_proj``, which no flag rounds, are multiples of a number."""

    def violation(source: ExportSource) -> str | None:
        if source.hidden_size % multiple:
            return f"hidden size {source.hidden_size} is no multiple of {multiple}"
        per_group = source.queries_per_kv * source.head_dim
        odd = [i for i, shape in enumerate(source.shapes) if shape.num_kv_groups * per_group % multiple]
        if not odd:
            return None
        count = source.shapes[odd[0]].num_kv_groups * per_group
        return f"o_proj has {count} columns in layer {odd[0]}{_more(odd)}, no multiple of {multiple}"

    return Rule(f"hidden size and columns of o_proj in multiples of {multiple}", violation)


def _range(values: Iterable[int]) -> str:
    low, *_, high = sorted([*(found := list(values)), *found])
    return f"{low}" if low == high else f"{low}-{high}"


def _layers(lack: str, indices: Iterable[int]) -> str | None:
    found = list(indices)
    return f"layer {found[0]}{_more(found)} {lack}" if found else None


def _more(indices: list[int]) -> str:
    return f" (and {len(indices) - 1} more)" if len(indices) > 1 else ""
