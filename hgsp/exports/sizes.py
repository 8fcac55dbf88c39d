"""Predicted bytes of a model in the formats of engines, weights and KV cache, from its shapes alone.

K kv groups | R query heads per kv group | D head dim | H hidden | M mlp width
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgsp.errors import InputError
from hgsp.exports.block_types import TypeOf, bytes_of, every, fitting, q4_k_m
from hgsp.exports.gguf_architecture import Architecture, architecture_of
from hgsp.exports.gguf_layout import layers_of
from hgsp.exports.parameters import (
    Biases,
    Block,
    Matrix,
    bias_params,
    biases_of,
    blocks_of,
    decilm_layout,
    matrices,
    norm_params,
)
from hgsp.exports.source import ExportSource
from hgsp.models.families import family_of
from hgsp.models.geometry import Geometry, LayerShape


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
    return source.dtype.itemsize


def sizes_of(source: ExportSource, value_bytes: int) -> tuple[EngineSize, ...]:
    """Predict weights and KV cache in every format that can hold a model of this family and shape.

    Args:
        value_bytes: of the checkpoint's dtype: 2 for bfloat16.
    """
    blocks, biases = blocks_of(source), biases_of(source)
    stored = _stored_bytes(source, blocks, biases, value_bytes)
    sizes = [EngineSize("Transformers, vLLM", stored, _kv_bytes(source, blocks, value_bytes))]
    if (architecture := _gguf_architecture(source)) is not None:
        sizes += _gguf_sizes(source, architecture, biases)
    if not (source.family.qk_norm or source.beyond_llama):
        layout = decilm_layout(source)
        padded = tuple(
            Block(heads.num_queries, heads.num_kv, width) if heads else Block(0, 0, width)
            for heads, width in zip(layout.heads, layout.widths, strict=True)
        )
        attention, mlp = biases.qkv or biases.o_proj, biases.gate_up or biases.down_proj
        with_padding = _stored_bytes(source, padded, Biases(attention, attention, mlp, mlp), value_bytes)
        note = f"padding adds {(with_padding - stored) / stored:.1%}" if with_padding > stored else ""
        sizes.append(EngineSize("DeciLM", with_padding, _kv_bytes(source, padded, value_bytes), note))
    return tuple(sizes)


def _stored_bytes(source: ExportSource, blocks: tuple[Block, ...], biases: Biases, value_bytes: int) -> int:
    values = sum(matrix.rows * matrix.columns for matrix in matrices(source, blocks))
    return (values + norm_params(source, blocks) + bias_params(source, blocks, biases)) * value_bytes


def _kv_bytes(source: ExportSource, blocks: Iterable[Block], value_bytes: int) -> int:
    return sum(2 * block.kv * source.head_dim * value_bytes for block in blocks)


def _gguf_architecture(source: ExportSource) -> Architecture | None:
    try:
        return architecture_of(source)
    except InputError:
        return None


def _gguf_sizes(source: ExportSource, architecture: Architecture, biases: Biases) -> list[EngineSize]:
    """Predict GGUF files, zero blocks included. Vectors are float32, the KV cache is float16."""
    layers = layers_of(source, architecture)
    blocks = tuple(Block(layer.num_heads, layer.num_kv_heads, layer.mlp_width) for layer in layers)
    found = list(matrices(source, blocks))
    scaled_rope = source.rope["rope_type"] == "llama3"
    vectors = norm_params(source, blocks) + bias_params(source, blocks_of(source), biases)
    vectors += scaled_rope * source.head_dim // 2  # frequency factors
    kv_bytes = _kv_bytes(source, blocks, 2)
    types: dict[str, TypeOf] = {"F16": every("F16"), "Q8_0": every("Q8_0"), "Q4_K_M": q4_k_m(found)}
    return [
        EngineSize(f"llama.cpp {name}", weights + 4 * vectors, kv_bytes, note)
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
