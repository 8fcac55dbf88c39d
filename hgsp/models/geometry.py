"""Sizes of a model in groups and parameters, read from its modules.

K kv groups | R query heads per kv group | D head dim | H hidden | M mlp width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hgsp.errors import InputError
from hgsp.models.families import Block, family_of

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LayerShape:
    """Size of one decoder layer in KV groups and SwiGLU channels; 0 if the layer has no such block."""

    num_kv_groups: int
    mlp_width: int


@dataclass(frozen=True)
class Geometry:
    """Sizes and parameter counts of a model. Tied embeddings count once.

    ``kv_group_params`` and ``mlp_channel_params`` are the parameters of one group, biases included. ``*_extra_params``
    are those of a block that belong to no group (norms, output bias) and are removed only with the whole block.
    ``prunes_kv_groups`` is False where attention is removed whole or not at all.
    """

    hidden_size: int
    head_dim: int
    queries_per_kv: int
    shapes: tuple[LayerShape, ...]
    kv_group_params: int
    mlp_channel_params: int
    attention_extra_params: int
    mlp_extra_params: int
    total_params: int
    prunes_kv_groups: bool = True

    @property
    def num_layers(self) -> int:
        return len(self.shapes)

    def columns_per_group(self, kind: str) -> int:
        """Return the number of output-projection columns that belong to one group."""
        return self.queries_per_kv * self.head_dim if kind == "attention" else 1

    def params_per_group(self, kind: str) -> int:
        """Return the number of parameters of one group."""
        return self.kv_group_params if kind == "attention" else self.mlp_channel_params

    def layer_params(self, shape: LayerShape) -> int:
        """Count the parameters of a layer of this shape. A block without groups has none."""
        attention = shape.num_kv_groups * self.kv_group_params + self.attention_extra_params
        mlp = shape.mlp_width * self.mlp_channel_params + self.mlp_extra_params
        return attention * (shape.num_kv_groups > 0) + mlp * (shape.mlp_width > 0)

    @property
    def decoder_params(self) -> int:
        return sum(self.layer_params(shape) for shape in self.shapes)

    def kv_cache_bytes_per_token(self, shapes: tuple[LayerShape, ...], bytes_per_value: int) -> int:
        """Return the bytes that one token adds to the KV cache, keys and values of all layers together."""
        return sum(2 * shape.num_kv_groups * self.head_dim * bytes_per_value for shape in shapes)


def geometry_of(model: nn.Module) -> Geometry:
    """Read the geometry of a causal LM, dense or pruned; its tensors may be on the meta device.

    Raises:
        InputError: unsupported family, no layer with both blocks, or query heads that do not divide over the KV heads.
    """
    causal_lm: Any = model
    config = causal_lm.config
    layers = causal_lm.model.layers
    full = next((layer for layer in layers if layer.self_attn is not None and layer.mlp is not None), None)
    if full is None:
        raise InputError(
            expected="a model in which at least one layer has both attention and MLP",
            got=f"none among {len(layers)} layers",
            remedy="start from the dense model",
        )
    head_dim = full.self_attn.head_dim
    num_kv = full.self_attn.k_proj.out_features // head_dim
    num_queries = full.self_attn.q_proj.out_features // head_dim
    if num_queries % num_kv:
        raise InputError(
            expected="query heads that divide evenly over the KV heads",
            got=f"{num_queries} query heads over {num_kv} KV heads",
            remedy="check the model's config.json",
        )
    family = family_of(config)
    blocks = family.blocks
    attention_groups, mlp_groups = (_params_of_groups(full, blocks[kind]) for kind in ("attention", "mlp"))
    return Geometry(
        hidden_size=config.hidden_size,
        head_dim=head_dim,
        queries_per_kv=num_queries // num_kv,
        shapes=tuple(_shape_of(layer) for layer in layers),
        kv_group_params=attention_groups // num_kv,
        mlp_channel_params=mlp_groups // full.mlp.gate_proj.out_features,
        attention_extra_params=_params_of_block(full, blocks["attention"]) - attention_groups,
        mlp_extra_params=_params_of_block(full, blocks["mlp"]) - mlp_groups,
        total_params=sum(parameter.numel() for parameter in causal_lm.parameters()),
        prunes_kv_groups=family.prunes_kv_groups,
    )


def _shape_of(layer: Any) -> LayerShape:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerShape(
        0 if attention is None else attention.k_proj.out_features // attention.head_dim,
        0 if mlp is None else mlp.gate_proj.out_features,
    )


def _params_of_groups(layer: Any, block: Block) -> int:
    return _params(layer, *block.input_projections) + layer.get_submodule(block.output_projection).weight.numel()


def _params_of_block(layer: Any, block: Block) -> int:
    return _params(layer, *filter(None, block.parts))


def _params(layer: Any, *names: str) -> int:
    return sum(parameter.numel() for name in names for parameter in layer.get_submodule(name).parameters())
