"""Sizes of a model in groups and parameters, read from its modules.

K kv groups | R query heads per kv group | D head dim | H hidden | M mlp width | E experts
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hgsp.errors import InputError
from hgsp.models.experts import expert_parameters, has_experts
from hgsp.models.families import Block, family_of
from hgsp.models.kinds import GROUP_KINDS, KIND_NAMED, GroupKind, kinds_among
from hgsp.models.linear_attention import LINEAR_ATTENTION, attention_of, has_linear_attention

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LayerShape:
    """Size of one decoder layer in groups of every kind; its MLP has channels or experts, 0 of both if it has none.

    A layer with ``linear_attention`` has no KV groups, and what mixes its tokens stays as long as the layer.
    """

    num_kv_groups: int
    mlp_width: int
    num_experts: int = 0
    linear_attention: bool = field(default=False, kw_only=True)

    @property
    def kinds(self) -> tuple[GroupKind, GroupKind]:
        """The kinds of the groups that attention and MLP consist of."""
        return KIND_NAMED["attention"], KIND_NAMED["expert" if self.num_experts else "mlp"]

    @property
    def block_sizes(self) -> tuple[int, int]:
        """The numbers of groups of attention and MLP."""
        return self.num_kv_groups, self.num_experts or self.mlp_width

    def size_of(self, kind: str) -> int:
        """Return the number of groups of one kind."""
        return int(getattr(self, KIND_NAMED[kind].size))


@dataclass(frozen=True)
class Geometry:
    """Sizes and parameter counts of a model. Tied embeddings count once.

    ``kv_group_params``, ``mlp_channel_params`` and ``expert_params`` are the parameters of one group, biases and the
    router's row included. ``*_extra_params`` are those of a block that belong to no group (norms, output bias) and are
    removed only with the whole block. ``prunes_kv_groups`` is False where attention is removed whole or not at all. A
    token uses ``experts_per_token``. A head has ``query_width`` times ``head_dim`` rows of the query projection.
    ``linear_attention_params`` are those of a block of linear attention, with its norm.
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
    expert_params: int = 0
    expert_extra_params: int = 0
    experts_per_token: int = 0
    query_width: int = 1
    linear_attention_params: int = 0

    @property
    def num_layers(self) -> int:
        return len(self.shapes)

    @property
    def kinds(self) -> tuple[GroupKind, ...]:
        """The kinds of groups that the model consists of."""
        return kinds_among({kind.name for shape in self.shapes for kind in shape.kinds if shape.size_of(kind.name)})

    def columns_per_group(self, kind: str) -> int:
        """Return the number of output-projection columns that belong to one group."""
        return self.queries_per_kv * self.head_dim if kind == "attention" else 1

    def params_per_group(self, kind: str) -> int:
        """Return the number of parameters of one group."""
        return self._params_of_kinds[kind][0]

    def extra_params(self, kind: str) -> int:
        """Return the parameters of a block of such groups that belong to none of them."""
        return self._params_of_kinds[kind][1]

    @property
    def smallest_group_params(self) -> int:
        """The parameters of a group of the smallest kind; of channels where the model has any."""
        return self.mlp_channel_params or min(self.kv_group_params, self.expert_params)

    @property
    def params_per_token(self) -> int:
        """The parameters that a token uses: all but those of the experts that it is not routed to."""
        idle = sum(max(0, shape.num_experts - self.experts_per_token) for shape in self.shapes)
        return self.total_params - idle * self.expert_params

    @property
    def _params_of_kinds(self) -> dict[str, tuple[int, int]]:
        """Parameters of one group, and of a block beside its groups, by kind."""
        return {
            "attention": (self.kv_group_params, self.attention_extra_params),
            "mlp": (self.mlp_channel_params, self.mlp_extra_params),
            "expert": (self.expert_params, self.expert_extra_params),
        }

    def layer_params(self, shape: LayerShape) -> int:
        """Count the parameters of a layer of this shape. A block without groups has none."""
        params = self._params_of_kinds
        sizes = ((shape.size_of(kind.name), *params[kind.name]) for kind in GROUP_KINDS)
        groups = sum(size * group + extra for size, group, extra in sizes if size)
        return groups + shape.linear_attention * self.linear_attention_params

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
    full = next((layer for layer in layers if attention_of(layer) is not None and layer.mlp is not None), None)
    if full is None:
        raise InputError(
            expected="a model in which at least one layer has both attention and MLP",
            got=f"none among {len(layers)} layers",
            remedy="start from the dense model",
        )
    head_dim = full.self_attn.head_dim
    num_kv = full.self_attn.k_proj.out_features // head_dim
    family = family_of(config)
    num_queries = full.self_attn.q_proj.out_features // (head_dim * family.query_width)
    if num_queries % num_kv:
        raise InputError(
            expected="query heads that divide evenly over the KV heads",
            got=f"{num_queries} query heads over {num_kv} KV heads",
            remedy="check the model's config.json",
        )
    blocks = family.blocks
    linear = next((layer for layer in layers if has_linear_attention(layer)), None)
    attention_groups = _params_of_groups(full, blocks["attention"])
    channel_params, mlp_extra = _mlp_params(layers, blocks["mlp"])
    expert_params, expert_extra = _expert_params(layers, blocks["mlp"])
    return Geometry(
        hidden_size=config.hidden_size,
        head_dim=head_dim,
        queries_per_kv=num_queries // num_kv,
        shapes=tuple(_shape_of(layer) for layer in layers),
        kv_group_params=attention_groups // num_kv,
        mlp_channel_params=channel_params,
        attention_extra_params=_params_of_block(full, blocks["attention"]) - attention_groups,
        mlp_extra_params=mlp_extra,
        total_params=sum(parameter.numel() for parameter in causal_lm.parameters()),
        prunes_kv_groups=family.prunes_kv_groups,
        expert_params=expert_params,
        expert_extra_params=expert_extra,
        experts_per_token=config.num_experts_per_tok if family.experts else 0,
        query_width=family.query_width,
        linear_attention_params=0 if linear is None else _params_of_block(linear, LINEAR_ATTENTION),
    )


def _mlp_params(layers: Any, block: Block) -> tuple[int, int]:
    """Count the parameters of a channel, and of an MLP beside its channels; 0 in models without such layers."""
    layer = next((layer for layer in layers if layer.mlp is not None and not has_experts(layer)), None)
    if layer is None:
        return 0, 0
    groups = _params_of_groups(layer, block)
    return groups // layer.mlp.gate_proj.out_features, _params_of_block(layer, block) - groups


def _expert_params(layers: Any, block: Block) -> tuple[int, int]:
    """Count the parameters of an expert, and of a mixture beside its experts; 0 in dense models."""
    layer = next((layer for layer in layers if layer.mlp is not None and has_experts(layer)), None)
    if layer is None:
        return 0, 0
    parameters = expert_parameters(layer).values()
    groups = sum(parameter.numel() for parameter in parameters)
    return sum(parameter[0].numel() for parameter in parameters), _params_of_block(layer, block) - groups


def _shape_of(layer: Any) -> LayerShape:
    attention, mlp, is_linear = attention_of(layer), layer.mlp, has_linear_attention(layer)
    num_kv = 0 if attention is None else attention.k_proj.out_features // attention.head_dim
    if mlp is None:
        return LayerShape(num_kv, 0, linear_attention=is_linear)
    if has_experts(layer):
        return LayerShape(num_kv, 0, len(layer.mlp.gate.weight), linear_attention=is_linear)
    return LayerShape(num_kv, mlp.gate_proj.out_features, linear_attention=is_linear)


def _params_of_groups(layer: Any, block: Block) -> int:
    return _params(layer, *block.input_projections) + layer.get_submodule(block.output_projection).weight.numel()


def _params_of_block(layer: Any, block: Block) -> int:
    return _params(layer, *filter(None, block.parts))


def _params(layer: Any, *names: str) -> int:
    return sum(parameter.numel() for name in names for parameter in layer.get_submodule(name).parameters())
