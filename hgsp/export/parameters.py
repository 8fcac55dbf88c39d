"""Matrices and biases of a checkpoint by layer, from its config and shapes; no weights are read.

K kv groups | R query heads per kv group | D head dim | H hidden | M mlp width | V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hgsp.export.source import ExportSource


@dataclass(frozen=True)
class Biases:
    """Which projections have a bias."""

    qkv: bool
    o_proj: bool
    gate_up: bool
    down_proj: bool


@dataclass(frozen=True)
class Heads:
    """Attention heads of one layer as a format stores them, padding included."""

    queries: int
    kv: int


@dataclass(frozen=True)
class Matrix:
    """A Linear or embedding, [rows, columns]; ``layer`` is None outside the layers."""

    name: str
    layer: int | None
    rows: int
    columns: int


def biases_of(source: ExportSource) -> Biases:
    """Return which projections have a bias; ``writer_bias`` is the one that ``--reconstruct bias`` adds."""
    config, family = source.config, source.family.model_type
    attention = family in ("llama", "qwen3") and bool(config.get("attention_bias"))
    mlp = family == "llama" and bool(config.get("mlp_bias"))
    written = bool(config.get("writer_bias"))
    return Biases(attention or family == "qwen2", attention or written, mlp, mlp or written)


def has_qk_norms(source: ExportSource) -> bool:
    """Return whether queries and keys are normalised per head, as in Qwen3."""
    return source.family.model_type == "qwen3"


def heads_of(source: ExportSource) -> tuple[Heads, ...]:
    """Return the heads of every layer as the checkpoint stores them."""
    return tuple(Heads(shape.num_kv_groups * source.queries_per_kv, shape.num_kv_groups) for shape in source.shapes)


def matrices(source: ExportSource, heads: tuple[Heads, ...], widths: tuple[int, ...]) -> Iterator[Matrix]:
    """Yield embedding, head unless it is tied, and the matrices of all layers with these sizes."""
    hidden, head_dim, vocab = source.hidden_size, source.head_dim, int(source.config["vocab_size"])
    yield Matrix("embed_tokens", None, vocab, hidden)
    if not source.ties_embeddings:
        yield Matrix("lm_head", None, vocab, hidden)
    for layer, (head, width) in enumerate(zip(heads, widths, strict=True)):
        if head.kv:
            yield Matrix("q_proj", layer, head.queries * head_dim, hidden)
            yield Matrix("k_proj", layer, head.kv * head_dim, hidden)
            yield Matrix("v_proj", layer, head.kv * head_dim, hidden)
            yield Matrix("o_proj", layer, hidden, head.queries * head_dim)
        if width:
            yield Matrix("gate_proj", layer, width, hidden)
            yield Matrix("up_proj", layer, width, hidden)
            yield Matrix("down_proj", layer, hidden, width)


def vector_params(source: ExportSource, heads: tuple[Heads, ...], widths: tuple[int, ...]) -> int:
    """Count norms and biases with these sizes."""
    hidden, head_dim, biases = source.hidden_size, source.head_dim, biases_of(source)
    count = hidden  # the final norm
    for head, width in zip(heads, widths, strict=True):
        if head.kv:
            count += hidden + 2 * head_dim * has_qk_norms(source)
            count += (head.queries + 2 * head.kv) * head_dim * biases.qkv + hidden * biases.o_proj
        if width:
            count += hidden + 2 * width * biases.gate_up + hidden * biases.down_proj
    return count
