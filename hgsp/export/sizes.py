"""Predicted bytes of a model in the formats of engines, weights and KV cache, from its shapes alone.

K kv groups | R query heads per kv group | D head dim | H hidden | M mlp width
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgsp.export.block_types import TypeOf, bytes_of, every, fitting, q4_k_m
from hgsp.export.parameters import Heads, Matrix, has_qk_norms, heads_of, matrices, vector_params
from hgsp.export.source import ExportSource
from hgsp.models.families import family_of
from hgsp.models.geometry import Geometry, LayerShape

#: llama.cpp needs an MLP in every layer: one of zeros, of this width, replaces one that was removed.
ZERO_MLP_WIDTH = 256


@dataclass(frozen=True)
class EngineSize:
    """Bytes of a model in the format of one engine.

    Args:
        form: the engine and the format that it reads.
        weight_bytes: of tensors alone; files also hold names, and GGUF files the tokenizer.
        kv_bytes_per_token: of keys and values in all layers.
        note: on padding and fallbacks; empty if there are none.
    """

    form: str
    weight_bytes: int
    kv_bytes_per_token: int
    note: str = ""


def planned_source(config: Any, geometry: Geometry, shapes: tuple[LayerShape, ...]) -> ExportSource:
    """Return the result of a plan as a source without files, for ``sizes_of`` and verdicts before anything is pruned.

    Args:
        config: of the dense model.
        geometry: of the dense model.
        shapes: of all its layers after pruning; a layer without any block is removed.
    """
    left = tuple(shape for shape in shapes if shape.num_kv_groups or shape.mlp_width)
    return ExportSource(Path(), config.to_dict(), family_of(config), left, geometry.queries_per_kv, geometry.head_dim)


def value_bytes_of(source: ExportSource) -> int:
    """Return the bytes of a value in the checkpoint's dtype."""
    return 4 if str(source.config.get("dtype", source.config.get("torch_dtype"))) == "float32" else 2


def sizes_of(source: ExportSource, value_bytes: int) -> tuple[EngineSize, ...]:
    """Predict weights and KV cache in every format that can hold a model of this family and shape.

    Args:
        value_bytes: of the checkpoint's dtype: 2 for bfloat16.
    """
    heads, widths = heads_of(source), tuple(shape.mlp_width for shape in source.shapes)
    stored = _stored_bytes(source, heads, widths, value_bytes)
    sizes = [EngineSize("Transformers, vLLM", stored, _kv_bytes(source, heads, value_bytes))]
    if source.is_uniform or not has_qk_norms(source):
        sizes += _gguf_sizes(source, heads, widths)
    if not has_qk_norms(source):
        padded = decilm_heads(source)
        with_padding = _stored_bytes(source, padded, widths, value_bytes)
        note = f"padding adds {(with_padding - stored) / stored:.1%}" if with_padding > stored else ""
        sizes.append(EngineSize("DeciLM", with_padding, _kv_bytes(source, padded, value_bytes), note))
    return tuple(sizes)


def decilm_heads(source: ExportSource) -> tuple[Heads, ...]:
    """Return the heads of a DeciLM folder: as many query heads in every layer, and KV heads that divide them."""
    queries = int(source.config["num_attention_heads"])

    def heads(kept: int) -> Heads:
        return Heads(queries, next(kv for kv in range(kept, queries + 1) if queries % kv == 0)) if kept else Heads(0, 0)

    return tuple(heads(shape.num_kv_groups) for shape in source.shapes)


def _stored_bytes(source: ExportSource, heads: tuple[Heads, ...], widths: tuple[int, ...], value_bytes: int) -> int:
    values = sum(matrix.rows * matrix.columns for matrix in matrices(source, heads, widths))
    return (values + vector_params(source, heads, widths)) * value_bytes


def _kv_bytes(source: ExportSource, heads: Iterable[Heads], value_bytes: int) -> int:
    return sum(2 * head.kv * source.head_dim * value_bytes for head in heads)


def _gguf_sizes(source: ExportSource, heads: tuple[Heads, ...], widths: tuple[int, ...]) -> list[EngineSize]:
    """Predict GGUF files, with the zero blocks that llama.cpp needs; vectors are float32, the KV cache float16."""
    heads = heads if heads[0].kv else (Heads(1, 1), *heads[1:])
    widths = tuple(width or ZERO_MLP_WIDTH for width in widths)
    found = list(matrices(source, heads, widths))
    scaled_rope = source.rope["rope_type"] == "llama3"
    vector_bytes = 4 * (vector_params(source, heads, widths) + scaled_rope * source.head_dim // 2)
    kv_bytes = _kv_bytes(source, heads, 2)
    types: dict[str, TypeOf] = {"F16": every("F16"), "Q8_0": every("Q8_0"), "Q4_K_M": q4_k_m(found)}
    return [
        EngineSize(f"llama.cpp {name}", weights + vector_bytes, kv_bytes, note)
        for name, type_of in types.items()
        for weights, note in [_typed(found, type_of)]
    ]


def _typed(found: list[Matrix], type_of: TypeOf) -> tuple[int, str]:
    """Return the bytes of matrices in their types, and a note on those whose columns do not fill the type's blocks."""
    wanted = [(matrix, type_of(matrix)) for matrix in found]
    types = [fitting(kind, matrix.columns) for matrix, kind in wanted]
    fallen = sorted({(kind, took) for (_, kind), took in zip(wanted, types, strict=True) if kind != took})
    count = sum(kind != took for (_, kind), took in zip(wanted, types, strict=True))
    note = f"{count} of {len(found)} matrices: {', '.join(f'{took} for {kind}' for kind, took in fallen)}"
    size = sum(bytes_of(matrix, kind) for matrix, kind in zip(found, types, strict=True))
    return size, note if fallen else ""
