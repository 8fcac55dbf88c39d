"""The ``nemotron-nas`` layout (DeciLMForCausalLM): a Llama decoder with KV heads and MLP width per layer.

All layers have the same number of query heads. Widths are multiples of 256, for ``ffn_mult`` is rounded up to one.

K kept KV groups | R query heads per KV head | N query heads and G KV heads of the export | D head dim | H hidden
M kept MLP width | W width of the export
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hgsp.errors import InputError
from hgsp.exports.hf_folder import shared_settings
from hgsp.exports.inventory import Tensors, copied, num_params
from hgsp.exports.padding import HeadLayout, PaddedTensor, Part, round_up, smallest_layout
from hgsp.exports.source import ExportSource
from hgsp.models.blocks import BLOCKS, Block
from hgsp.models.configuration_decilm import DeciLMConfig
from hgsp.models.families import LAYER_PREFIX

WIDTH_MULTIPLE = 256
#: Scalings of rotary frequencies that every engine of this layout computes as transformers does.
ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class NemotronNas:
    """A checkpoint in this layout.

    Args:
        shapes: of the checkpoint's tensors.
        heads: of every layer; None for a layer without attention.
        widths: of every layer; 0 for a layer without MLP.
    """

    source: ExportSource
    shapes: dict[str, tuple[int, ...]]
    heads: tuple[HeadLayout | None, ...]
    widths: tuple[int, ...]

    @property
    def num_queries(self) -> int:
        return next(layout.num_queries for layout in self.heads if layout)

    @property
    def mlx_reads(self) -> bool:
        """Whether mlx-lm reads the layout: it computes the head dimension from the hidden size."""
        return self.num_queries * self.source.head_dim == self.source.hidden_size

    @property
    def attention_bias(self) -> bool:
        """Whether a projection of an attention has a bias; all four then have one in the export, zero if need be."""
        return any(".self_attn." in name and name.endswith(".bias") for name in self.shapes)

    @property
    def mlp_bias(self) -> bool:
        """Whether a projection of an MLP has a bias; all three then have one in the export, zero if need be."""
        return any(".mlp." in name and name.endswith(".bias") for name in self.shapes)

    def config(self) -> dict[str, Any]:
        """Return ``config.json``, without ``auto_map``."""
        return {
            **shared_settings(self.source),
            "architectures": ["DeciLMForCausalLM"],
            "model_type": DeciLMConfig.model_type,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "num_attention_heads": self.num_queries,
            "num_key_value_heads": max(layout.num_kv for layout in self.heads if layout),
            "intermediate_size": max(self.widths),
            "block_configs": [
                {"attention": _attention_settings(heads), "ffn": self._mlp_settings(width)}
                for heads, width in zip(self.heads, self.widths, strict=True)
            ],
        }

    def tensors(self) -> Tensors:
        """Return the tensors of the export by name."""
        tensors = {
            name: copied(name, shape) for name, shape in self.shapes.items() if not name.startswith(LAYER_PREFIX)
        }
        for index, (heads, width) in enumerate(zip(self.heads, self.widths, strict=True)):
            if heads is not None:
                tensors |= self._attention(index, heads)
            if width:
                tensors |= self._mlp(index, width)
        return tensors

    def notes(self, tensors: Tensors) -> tuple[str, ...]:
        """Return the cost of the padding."""
        before = sum(PaddedTensor(shape).numel for shape in self.shapes.values())
        added = num_params(tensors) - before
        bytes_per_head = 2 * self.source.head_dim * 2  # keys and values in 16 bits
        kv_before = sum(shape.num_kv_groups for shape in self.source.shapes) * bytes_per_head
        kv_after = sum(layout.num_kv for layout in self.heads if layout) * bytes_per_head
        return (
            f"zero padding adds {added:,} parameters ({added / before:.1%} of {before:,}); KV cache per token in 16 "
            f"bits: {kv_before:,} bytes before, {kv_after:,} after",
        )

    def _attention(self, index: int, heads: HeadLayout) -> dict[str, PaddedTensor]:
        source, kept = self.source, self.source.shapes[index].num_kv_groups
        queries = heads.query_positions(kept, source.queries_per_kv, source.head_dim)
        keys = range(kept * source.head_dim)
        query_rows, key_rows = heads.num_queries * source.head_dim, heads.num_kv * source.head_dim
        rows = ((query_rows, queries), (key_rows, keys), (key_rows, keys))
        return self._block(index, BLOCKS["attention"], rows, self.attention_bias)

    def _mlp(self, index: int, width: int) -> dict[str, PaddedTensor]:
        rows = (width, range(self.source.shapes[index].mlp_width))
        return self._block(index, BLOCKS["mlp"], (rows, rows), self.mlp_bias)

    def _block(
        self, index: int, block: Block, rows: Sequence[tuple[int, Sequence[int]]], biased: bool
    ) -> dict[str, PaddedTensor]:
        """Return the tensors of a block.

        Args:
            rows: of every input projection, how many there are and which of them are the checkpoint's.
        """
        hidden, output = self.source.hidden_size, block.output_projection
        tensors: dict[str, tuple[tuple[int, ...], int, Sequence[int]]]
        tensors = {f"{block.norm}.weight": ((hidden,), 0, range(hidden))}
        for name, (size, positions) in zip(block.input_projections, rows, strict=True):
            tensors[f"{name}.weight"] = ((size, hidden), 0, positions)
            if biased:
                tensors[f"{name}.bias"] = ((size,), 0, positions)
        size, positions = rows[0]
        tensors[f"{output}.weight"] = ((hidden, size), 1, positions)
        if biased:
            tensors[f"{output}.bias"] = ((hidden,), 0, range(hidden))
        prefix = f"{LAYER_PREFIX}{index}."
        return {prefix + name: self._padded(prefix + name, *place) for name, place in tensors.items()}

    def _padded(self, name: str, shape: tuple[int, ...], dim: int, positions: Sequence[int]) -> PaddedTensor:
        """Return a tensor with the checkpoint's in these positions; if it has none, zeros, or ones for a norm."""
        if name in self.shapes:
            return PaddedTensor(shape, (Part(name, dim, positions),))
        return PaddedTensor(shape, fill=1.0 if "norm" in name else 0.0)

    def _mlp_settings(self, width: int) -> dict[str, Any]:
        if not width:
            return {"no_op": True, "replace_with_linear": False, "ffn_mult": None}
        # engines compute int(2 * ffn_mult * H / 3), rounded up to a multiple of 256
        return {"no_op": False, "replace_with_linear": False, "ffn_mult": 3 * width / (2 * self.source.hidden_size)}


def nemotron_nas(source: ExportSource, shapes: dict[str, tuple[int, ...]], num_queries: int) -> NemotronNas:
    """Lay a checkpoint out with ``num_queries`` query heads in every layer.

    A first layer without attention gets one head of zeros: vLLM has no residual stream before the first attention.

    Raises:
        InputError: a layer's groups do not fit into that number of heads.
    """
    heads = tuple(
        smallest_layout(shape.num_kv_groups, source.queries_per_kv, num_queries)
        if shape.num_kv_groups or index == 0
        else None
        for index, shape in enumerate(source.shapes)
    )
    for shape, layout in zip(source.shapes, heads, strict=True):
        if shape.num_kv_groups and layout is None:
            raise InputError(
                expected=f"KV groups that fit into {num_queries} query heads",
                got=f"{shape.num_kv_groups} groups of {source.queries_per_kv}",
                remedy="use another target",
            )
    return NemotronNas(
        source, shapes, heads, tuple(round_up(shape.mlp_width, WIDTH_MULTIPLE) for shape in source.shapes)
    )


def check_nemotron_nas(source: ExportSource) -> None:
    """Refuse models whose block this layout does not have.

    Raises:
        InputError: a part that no Llama has, or a scaling of rotary frequencies that engines compute differently.
    """
    norms = "norms of queries and keys" if source.family.qk_norm else ""
    if part := source.beyond_llama or norms:
        raise InputError(
            expected="a Llama, Mistral or Qwen2 model with full attention",
            got=f"{source.family.models}, with {part}, which the nemotron-nas layout has no place for",
            remedy="vLLM and Transformers read the checkpoint itself"
            + ("" if source.beyond_llama else "; for mlx-lm use --to mlx"),
        )
    check_rope(source, ROPE_TYPES)


def check_rope(source: ExportSource, types: Sequence[str]) -> None:
    """Refuse other scalings of rotary frequencies.

    Raises:
        InputError: with the type.
    """
    if source.rope["rope_type"] not in types:
        raise InputError(
            expected=f"rotary frequencies of type {' or '.join(types)}",
            got=source.rope["rope_type"],
            remedy="serve the checkpoint itself with vLLM or Transformers",
        )


def _attention_settings(heads: HeadLayout | None) -> dict[str, Any]:
    return {
        "no_op": heads is None,
        "replace_with_linear": False,
        "n_heads_in_group": None if heads is None else heads.queries_per_kv,
    }
