"""The residual blocks of a decoder layer and the names of their modules, which all families share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Block:
    """One residual block of a layer, ``x + post_norm(module(norm(x)))``, by the names of its parts in the layer.

    A group owns rows of the input projections and columns of the output projection. Everything else in the block
    (norms, output bias) is removed only with the whole block. Without ``norm`` or ``post_norm``, the block lacks it.
    """

    module: str
    norm: str | None
    input_projections: tuple[str, ...]
    output_projection: str
    post_norm: str | None = None

    @property
    def parts(self) -> tuple[str, str | None, str | None]:
        """Module, norm of its input and norm of its output, as the modelling files name them."""
        return self.module, self.norm, self.post_norm

    @property
    def entry(self) -> str:
        """The submodule whose input is the residual stream."""
        return self.norm or self.module


#: Kind of block -> its parts, in the order in which a layer calls them.
BLOCKS: Mapping[str, Block] = {
    "attention": Block(
        "self_attn", "input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj"
    ),
    "mlp": Block("mlp", "post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
}
KINDS = tuple(BLOCKS)
OUTPUT_PROJECTIONS = {kind: block.output_projection for kind, block in BLOCKS.items()}

ATTENTION_INPUTS, ATTENTION_OUTPUT = BLOCKS["attention"].input_projections, OUTPUT_PROJECTIONS["attention"]
MLP_INPUTS, MLP_OUTPUT = BLOCKS["mlp"].input_projections, OUTPUT_PROJECTIONS["mlp"]
#: A logit per query head that takes a part of its attention from all tokens, in families that have them.
SINKS = "self_attn.sinks"
LINEARS = (*ATTENTION_INPUTS, ATTENTION_OUTPUT, *MLP_INPUTS, MLP_OUTPUT)


def head_parameters(layer: Any) -> dict[str, Any]:
    """Return the parameters of a layer's attention with a value per query head, by name."""
    sinks = getattr(getattr(layer, BLOCKS["attention"].module, None), "sinks", None)
    return {} if sinks is None else {SINKS: sinks}
