"""The ``openelm`` layout of mlx-lm: query heads, KV heads and MLP width per layer, without padding.

Its block is Llama's, with or without norms of queries and keys, without biases and scaled rotary frequencies. The
projections of queries, keys and values are one matrix, as are gate and up.

K KV groups | R query heads per KV head | D head dim | H hidden | M MLP width
"""

from __future__ import annotations

from typing import Any

from hgsp.exports.gguf_architecture import has_head_norms
from hgsp.exports.hf_folder import shared_settings
from hgsp.exports.inventory import Tensors
from hgsp.exports.padding import PaddedTensor, Part
from hgsp.exports.source import ExportSource
from hgsp.models.blocks import BLOCKS, Block
from hgsp.models.families import LAYER_PREFIX

MODEL_TYPE = "openelm"
#: Kind of block -> names of input projection, output projection and norm in this layout.
_NAMES = {"attention": ("attn.qkv_proj", "attn.out_proj", "attn_norm"), "mlp": ("ffn.proj_1", "ffn.proj_2", "ffn_norm")}


def reason_against(source: ExportSource, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Return why this layout cannot hold a checkpoint, None if it can."""
    if source.beyond_llama:
        return source.beyond_llama
    if any(name.endswith(".bias") for name in shapes):
        return "biases"
    if source.rope["rope_type"] != "default":
        return f"rotary frequencies of type {source.rope['rope_type']}"
    activation = source.config.get("hidden_act", "silu")
    return None if activation == "silu" else f"activation {activation}"


def openelm_config(source: ExportSource) -> dict[str, Any]:
    """Return ``config.json``. A layer without attention has one head of zeros, one without MLP a channel of zeros."""
    groups = [max(1, shape.num_kv_groups) for shape in source.shapes]
    queries = [shape.num_kv_groups * source.queries_per_kv or 1 for shape in source.shapes]
    shared = shared_settings(source)
    return {
        **{key: shared[key] for key in shared if not key.startswith("rope_")},
        "architectures": ["OpenELMForCausalLM"],
        "model_type": MODEL_TYPE,
        "model_dim": source.hidden_size,
        "num_transformer_layers": len(source.shapes),
        "num_query_heads": queries,
        "num_kv_heads": groups,
        "ffn_multipliers": [max(1, shape.mlp_width) / source.hidden_size for shape in source.shapes],
        "ffn_dim_divisor": 1,
        "normalize_qk_projections": has_head_norms(source),
        "share_input_output_layers": source.ties_embeddings,
        "rope_freq_constant": source.rope["rope_theta"],
    }


def openelm_tensors(source: ExportSource, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Return the tensors of the export by name."""
    family = source.family
    tensors = {
        "transformer.token_embeddings.weight": _stacked(shapes, f"{family.embedding}.weight"),
        "transformer.norm.weight": _stacked(shapes, f"{family.final_norm}.weight"),
    }
    if not source.ties_embeddings:
        tensors["lm_head.weight"] = _stacked(shapes, f"{family.head}.weight")
    for index, shape in enumerate(source.shapes):
        old, new = f"{LAYER_PREFIX}{index}.", f"transformer.layers.{index}."
        for kind, size in (("attention", shape.num_kv_groups), ("mlp", shape.mlp_width)):
            block = _block(source, shapes, old, kind) if size else _empty_block(source, kind)
            tensors |= {new + name: tensor for name, tensor in block.items()}
        if has_head_norms(source):
            for norm in ("q_norm", "k_norm"):
                name = f"{old}self_attn.{norm}.weight"
                tensors[f"{new}attn.{norm}.weight"] = (
                    _stacked(shapes, name) if name in shapes else PaddedTensor((source.head_dim,), fill=1.0)
                )
    return tensors


def _block(source: ExportSource, shapes: dict[str, tuple[int, ...]], prefix: str, kind: str) -> dict[str, PaddedTensor]:
    block: Block = BLOCKS[kind]
    inputs, output, norm = _NAMES[kind]
    return {
        f"{inputs}.weight": _stacked(shapes, *(f"{prefix}{name}.weight" for name in block.input_projections)),
        f"{output}.weight": _stacked(shapes, f"{prefix}{block.output_projection}.weight"),
        f"{norm}.weight": _stacked(shapes, f"{prefix}{block.norm}.weight"),
    }


def _empty_block(source: ExportSource, kind: str) -> dict[str, PaddedTensor]:
    """Return a block that adds nothing: one query and one KV head, or one channel, of zeros."""
    hidden = source.hidden_size
    width, stacked = (source.head_dim, 3) if kind == "attention" else (1, 2)
    inputs, output, norm = _NAMES[kind]
    return {
        f"{inputs}.weight": PaddedTensor((stacked * width, hidden)),
        f"{output}.weight": PaddedTensor((hidden, width)),
        f"{norm}.weight": PaddedTensor((hidden,), fill=1.0),
    }


def _stacked(shapes: dict[str, tuple[int, ...]], *names: str) -> PaddedTensor:
    """Return the rows of several tensors of the checkpoint, one below the other."""
    parts, start = [], 0
    for name in names:
        rows = shapes[name][0]
        parts.append(Part(name, 0, range(start, start + rows)))
        start += rows
    return PaddedTensor((start, *shapes[names[0]][1:]), tuple(parts))
