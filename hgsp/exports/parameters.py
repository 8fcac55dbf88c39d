"""Matrices, norms and biases of a checkpoint, counted from its config and shapes; no weights are read.

H hidden | D head dim | V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from hgsp.exports.gguf_architecture import has_head_norms
from hgsp.exports.nemotron_nas import NemotronNas, nemotron_nas
from hgsp.exports.padding import cheapest_num_queries
from hgsp.exports.source import ExportSource
from hgsp.models.blocks import ATTENTION_INPUTS, ATTENTION_OUTPUT, KINDS, MLP_INPUTS, MLP_OUTPUT


class Biases(NamedTuple):
    """Which projections have a bias."""

    qkv: bool
    o_proj: bool
    gate_up: bool
    down_proj: bool


class Block(NamedTuple):
    """Heads and width of one layer as a format stores them, padding included; 0 for a block that it lacks."""

    queries: int
    kv: int
    width: int


class Matrix(NamedTuple):
    """A Linear or embedding, [rows, columns]; ``layer`` is None outside the layers."""

    name: str
    layer: int | None
    rows: int
    columns: int


def biases_of(source: ExportSource) -> Biases:
    """Return which projections have a bias; ``writer_bias`` is the one that ``--reconstruct bias`` adds."""
    config, family = source.config, source.family
    attention, mlp = (bool(config.get(family.bias_keys.get(kind, ""))) for kind in KINDS)
    written = bool(config.get("writer_bias"))
    return Biases(attention or family.input_biases, attention or written, mlp, mlp or written)


def biased_linears(source: ExportSource) -> tuple[str, ...]:
    """Return the names in a layer of the Linears that have a bias."""
    groups = (ATTENTION_INPUTS, (ATTENTION_OUTPUT,), MLP_INPUTS, (MLP_OUTPUT,))
    return tuple(linear for group, has in zip(groups, biases_of(source), strict=True) if has for linear in group)


def blocks_of(source: ExportSource) -> tuple[Block, ...]:
    """Return the blocks of every layer as the checkpoint stores them."""
    return tuple(
        Block(shape.num_kv_groups * source.queries_per_kv, shape.num_kv_groups, shape.mlp_width)
        for shape in source.shapes
    )


def decilm_layout(source: ExportSource) -> NemotronNas:
    """Return heads and widths of a DeciLM export, without its tensors."""
    kept = [shape.num_kv_groups for shape in source.shapes]
    preferred = source.hidden_size // source.head_dim
    return nemotron_nas(source, {}, cheapest_num_queries(kept, source.queries_per_kv, preferred))


def matrices(source: ExportSource, blocks: tuple[Block, ...]) -> Iterator[Matrix]:
    """Yield embedding, head unless it is tied, and the matrices of all layers."""
    hidden, head_dim, vocab = source.hidden_size, source.head_dim, int(source.config["vocab_size"])
    yield Matrix("embed_tokens", None, vocab, hidden)
    if not source.ties_embeddings:
        yield Matrix("lm_head", None, vocab, hidden)
    for layer, block in enumerate(blocks):
        if block.kv:
            yield Matrix("q_proj", layer, block.queries * head_dim, hidden)
            yield Matrix("k_proj", layer, block.kv * head_dim, hidden)
            yield Matrix("v_proj", layer, block.kv * head_dim, hidden)
            yield Matrix("o_proj", layer, hidden, block.queries * head_dim)
        if block.width:
            yield Matrix("gate_proj", layer, block.width, hidden)
            yield Matrix("up_proj", layer, block.width, hidden)
            yield Matrix("down_proj", layer, hidden, block.width)


def norm_params(source: ExportSource, blocks: tuple[Block, ...]) -> int:
    """Count the weights of all norms."""
    hidden, family = source.hidden_size, source.family
    attention, mlp = (hidden * len(list(filter(None, family.blocks[kind].parts[1:]))) for kind in KINDS)
    attention += 2 * source.head_dim * has_head_norms(source)
    of_all_heads = source.head_dim * (family.qk_norm == "all heads")
    return hidden + sum(
        (attention + (block.queries + block.kv) * of_all_heads) * (block.kv > 0) + mlp * (block.width > 0)
        for block in blocks
    )


def bias_params(source: ExportSource, blocks: tuple[Block, ...], biases: Biases) -> int:
    """Count the biases of all layers."""
    hidden, head_dim = source.hidden_size, source.head_dim
    return sum(
        (block.queries + 2 * block.kv) * head_dim * biases.qkv
        + hidden * biases.o_proj * (block.kv > 0)
        + 2 * block.width * biases.gate_up
        + hidden * biases.down_proj * (block.width > 0)
        for block in blocks
    )
