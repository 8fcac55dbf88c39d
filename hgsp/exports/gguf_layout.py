"""The tensors of a GGUF file: their names, sizes, order of rows, and the stored tensors they are made from.

K KV heads | R query heads per KV head | D head dim | H hidden | M MLP width | V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import torch
from torch import Tensor

from hgsp.errors import InputError
from hgsp.exports.gguf_architecture import Architecture, has_head_norms
from hgsp.exports.gguf_rope import frequency_factors
from hgsp.exports.parameters import biased_linears
from hgsp.exports.source import ExportSource
from hgsp.models.families import LAYER_PREFIX
from hgsp.models.geometry import LayerShape
from hgsp.models.weight_checks import incomplete, refuse_unplaced_weights

#: Width of the zero MLP in a layer that has none: llama.cpp drops the attention of a layer whose width is 0. One block
#: of the K-quants, so that a file with it can be quantised to any type.
ZERO_MLP_WIDTH = 256


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file.

    Args:
        shape: rows and columns, or the length of a vector.
        sources: names of stored tensors, stacked by rows; none if ``constant`` is set.
        num_heads: heads whose rows are interleaved (see ``interleave``); 0 keeps the order.
        constant: values that are not in the checkpoint: zeros, ones or frequency factors.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    num_heads: int = 0
    constant: Tensor | None = field(default=None, compare=False)


@dataclass(frozen=True)
class GgufLayer:
    """Sizes of a layer in the file; ``zero_heads`` and ``zero_mlp`` mark blocks of zeros that the model lacks."""

    num_heads: int
    num_kv_heads: int
    mlp_width: int
    zero_heads: bool
    zero_mlp: bool


def interleave(rows: Tensor, num_heads: int) -> Tensor:
    """Reorder rows [heads * D, ...] for rotation of adjacent pairs, from rotation of the two halves of a head.

    Row i of a head's first half moves to 2i, row i of its second half to 2i + 1.
    """
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def deinterleave(rows: Tensor, num_heads: int) -> Tensor:
    """Undo ``interleave``; rows [heads * D, ...]."""
    pairs = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def layers_of(source: ExportSource, architecture: Architecture) -> tuple[GgufLayer, ...]:
    """Return the sizes of all layers in the file.

    A layer without attention gets one head of zeros where the architecture cannot leave it out, one without MLP an MLP
    of zeros; neither changes the result.
    """

    def layer(index: int, shape: LayerShape) -> GgufLayer:
        without = shape.num_kv_groups == 0
        zero_heads = without and (index == 0 or not architecture.skips_attention)
        num_kv = 1 if zero_heads else shape.num_kv_groups
        num_heads = 1 if zero_heads else shape.num_kv_groups * source.queries_per_kv
        zero_mlp = shape.mlp_width == 0
        return GgufLayer(num_heads, num_kv, ZERO_MLP_WIDTH if zero_mlp else shape.mlp_width, zero_heads, zero_mlp)

    return tuple(layer(index, shape) for index, shape in enumerate(source.shapes))


def tensors_of(source: ExportSource, architecture: Architecture) -> tuple[GgufTensor, ...]:
    """Return all tensors of the file in order.

    Raises:
        InputError: stored tensors are missing, have another shape than ``config.json`` says, or have no place.
    """
    hidden, vocabulary = source.hidden_size, int(source.config["vocab_size"])
    tensors = [GgufTensor("token_embd.weight", (vocabulary, hidden), (f"{source.family.embedding}.weight",))]
    if (factors := frequency_factors(source)) is not None:
        tensors.append(GgufTensor("rope_freqs.weight", tuple(factors.shape), constant=factors))
    for index, layer in enumerate(layers_of(source, architecture)):
        tensors.extend(_layer_tensors(source, architecture, index, layer))
    tensors.append(GgufTensor("output_norm.weight", (hidden,), (f"{source.family.final_norm}.weight",)))
    if not source.ties_embeddings:
        tensors.append(GgufTensor("output.weight", (vocabulary, hidden), (f"{source.family.head}.weight",)))
    _check_stored(source, tensors)
    return tuple(tensors)


def read_tensor(source: ExportSource, tensor: GgufTensor) -> Tensor:
    """Read a tensor of the file in its stored dtype, with its rows in the file's order."""
    if tensor.constant is not None:
        return tensor.constant
    parts = [source.read(name) for name in tensor.sources]
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)
    return interleave(rows, tensor.num_heads) if tensor.num_heads else rows


def _layer_tensors(
    source: ExportSource, architecture: Architecture, index: int, layer: GgufLayer
) -> Iterator[GgufTensor]:
    if layer.num_heads:
        yield from _placed(index, _attention_tensors(source, architecture, layer), layer.zero_heads)
    yield from _placed(index, _mlp_tensors(source, layer), layer.zero_mlp)


def _placed(index: int, tensors: Iterable[GgufTensor], as_constants: bool) -> Iterator[GgufTensor]:
    """Name tensors by their layer; as constants, a block that adds zero: norms of ones, zeros and no biases."""
    for tensor in tensors:
        name = f"blk.{index}.{tensor.name}"
        if not as_constants:
            sources = tuple(f"{LAYER_PREFIX}{index}.{source}" for source in tensor.sources)
            yield replace(tensor, name=name, sources=sources)
        elif not name.endswith(".bias"):
            value = torch.tensor(1.0 if name.endswith("norm.weight") else 0.0)
            yield GgufTensor(name, tensor.shape, constant=value.expand(tensor.shape))  # expanded: takes no memory


def _attention_tensors(source: ExportSource, architecture: Architecture, layer: GgufLayer) -> Iterator[GgufTensor]:
    hidden, head_dim = source.hidden_size, source.head_dim
    yield GgufTensor("attn_norm.weight", (hidden,), ("input_layernorm.weight",))
    if has_head_norms(source):
        yield GgufTensor("attn_q_norm.weight", (head_dim,), ("self_attn.q_norm.weight",))
        yield GgufTensor("attn_k_norm.weight", (head_dim,), ("self_attn.k_norm.weight",))
    heads = {"q": layer.num_heads, "k": layer.num_kv_heads, "v": layer.num_kv_heads}
    if architecture.fuses_qkv:
        weights = tuple(f"self_attn.{projection}_proj.weight" for projection in heads)
        yield GgufTensor("attn_qkv.weight", (sum(heads.values()) * head_dim, hidden), weights)
    else:
        for projection, count in heads.items():
            interleaved = count if architecture.interleaves and projection != "v" else 0
            linear = f"self_attn.{projection}_proj"
            yield from _linear(source, f"attn_{projection}", linear, (count * head_dim, hidden), interleaved)
    yield from _linear(source, "attn_output", "self_attn.o_proj", (hidden, layer.num_heads * head_dim))


def _mlp_tensors(source: ExportSource, layer: GgufLayer) -> Iterator[GgufTensor]:
    hidden, width = source.hidden_size, layer.mlp_width
    yield GgufTensor("ffn_norm.weight", (hidden,), ("post_attention_layernorm.weight",))
    yield from _linear(source, "ffn_gate", "mlp.gate_proj", (width, hidden))
    yield from _linear(source, "ffn_up", "mlp.up_proj", (width, hidden))
    yield from _linear(source, "ffn_down", "mlp.down_proj", (hidden, width))


def _linear(
    source: ExportSource, name: str, linear: str, shape: tuple[int, int], num_heads: int = 0
) -> Iterator[GgufTensor]:
    yield GgufTensor(f"{name}.weight", shape, (f"{linear}.weight",), num_heads)
    if linear in biased_linears(source):
        yield GgufTensor(f"{name}.bias", shape[:1], (f"{linear}.bias",), num_heads)


def _check_stored(source: ExportSource, tensors: list[GgufTensor]) -> None:
    stored = source.tensors.shapes
    placed = {name for tensor in tensors for name in tensor.sources}
    if missing := sorted(placed - stored.keys()):
        raise incomplete(source.folder, f"{len(missing)} missing, such as {missing[0]}")
    for tensor in tensors:
        shapes = [stored[name] for name in tensor.sources]
        found = (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes else tensor.shape
        if found != tensor.shape:
            raise incomplete(source.folder, f"{tensor.sources[0]} of shape {list(shapes[0])}")
    ties = SimpleNamespace(tie_word_embeddings=source.ties_embeddings)
    refuse_unplaced_weights(source.folder, stored.keys() - placed, ties)
    head, embedding = f"{source.family.head}.weight", f"{source.family.embedding}.weight"
    if source.ties_embeddings and head in stored and not torch.equal(source.read(head), source.read(embedding)):
        raise InputError(
            expected="the embedding as head, since config.json has tie_word_embeddings",
            got="a head with weights of its own",
            remedy='set "tie_word_embeddings": false in config.json if that head belongs to the model',
        )
