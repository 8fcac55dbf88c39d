"""Layers of linear attention (gated DeltaNet) in hybrid models: they have no KV groups, and the block stays as it is.

It leaves with its whole layer alone; its output projection is refitted as that of attention.
"""

from __future__ import annotations

from typing import Any

from hgsp.models.blocks import BLOCKS, Block
from hgsp.models.families import Family

LINEAR_ATTENTION = Block(
    "linear_attn",
    "input_layernorm",
    ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.in_proj_b", "linear_attn.in_proj_a"),
    "linear_attn.out_proj",
)


def has_linear_attention(layer: Any) -> bool:
    """Return whether a layer, dense or pruned, mixes tokens by linear attention."""
    return getattr(layer, LINEAR_ATTENTION.module, None) is not None


def attention_of(layer: Any) -> Any:
    """Return the attention of a layer that has KV groups, None without one."""
    return getattr(layer, BLOCKS["attention"].module, None)


def block_of(layer: Any, kind: str, family: Family) -> Block:
    """Return the parts of a block of a layer: those of the family, or of linear attention in their place."""
    return LINEAR_ATTENTION if kind == "attention" and has_linear_attention(layer) else family.blocks[kind]


def output_of(layer: Any, kind: str) -> str:
    """Return the name in a layer of the output projection of a block, whatever the family."""
    return (LINEAR_ATTENTION if kind == "attention" and has_linear_attention(layer) else BLOCKS[kind]).output_projection
