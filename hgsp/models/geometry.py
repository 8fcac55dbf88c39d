"""Sizes of a model in groups and parameters, read from its modules.

K kv groups | R query heads per kv group | D head dim | H hidden | M mlp width | E experts | W width of an expert
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hgsp.errors import InputError
from hgsp.models.blocks import Block, head_parameters
from hgsp.models.experts import DOWN, GATE_UP, GATE_UP_BIAS, expert_parameters, expert_width, has_experts
from hgsp.models.families import family_of
from hgsp.models.kinds import KIND_NAMED, GroupKind, kinds_among
from hgsp.models.linear_attention import LINEAR_ATTENTION, attention_of, has_linear_attention

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LayerShape:
    """Size of one decoder layer in groups of every kind; its MLP has channels or experts, 0 of both if it has none.

    ``expert_width`` 0 beside experts, in plans without channels of experts, is their width in the dense model. A layer
    with ``linear_attention`` has no KV groups, and keeps its mixing of tokens as long as it is there itself.
    """

    num_kv_groups: int
    mlp_width: int
    num_experts: int = 0
    expert_width: int = 0
    linear_attention: bool = field(default=False, kw_only=True)

    @property
    def kinds(self) -> tuple[GroupKind, GroupKind]:
        """The kinds of the groups that attention and MLP consist of; of a mixture, experts."""
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

    ``kv_group_params`` and ``mlp_channel_params`` are the parameters of one group, biases included,
    ``expert_channel_params`` those of a channel of ONE expert, ``router_row_params`` those of an expert beside its
    channels. ``*_extra_params`` are those of a block that belong to no group (norms, output bias) and are removed only
    with the whole block. ``prunes_kv_groups`` is False where attention is removed whole or not at all,
    ``prunes_expert_channels`` where experts leave whole or not at all. A token uses ``experts_per_token``. A head has
    ``query_width`` times ``head_dim`` rows of the query projection. ``linear_attention_params`` are those of a block of
    linear attention, with its norm. ``fixed_expert_width``: channels of experts cannot leave.
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
    expert_channel_params: int = 0
    router_row_params: int = 0
    expert_extra_params: int = 0
    experts_per_token: int = 0
    prunes_expert_channels: bool = False
    query_width: int = 1
    linear_attention_params: int = 0
    fixed_expert_width: bool = False

    @property
    def num_layers(self) -> int:
        return len(self.shapes)

    @property
    def kinds(self) -> tuple[GroupKind, ...]:
        """The kinds of groups that the model consists of."""
        present = {kind.name for shape in self.shapes for kind in shape.kinds if shape.size_of(kind.name)}
        return kinds_among(present | {"expert_channel"} if self.prunes_expert_channels else present)

    def with_expert_channels(self, prunes: bool) -> Geometry:
        """Return the geometry whose experts lose channels or not; without experts there are none to lose.

        Raises:
            InputError: experts of this family cannot lose channels.
        """
        if prunes and self.fixed_expert_width:
            raise InputError(
                expected="experts with a gate and an up projection one after the other for --expert_channels",
                got="experts with interleaved ones",
                remedy="leave it out; experts are pruned whole",
            )
        return replace(self, prunes_expert_channels=prunes and self.experts_per_token > 0)

    def columns_per_group(self, kind: str) -> int:
        """Return the number of output-projection columns that belong to one group."""
        return self.queries_per_kv * self.head_dim if kind == "attention" else 1

    @property
    def expert_width(self) -> int:
        """The largest number of channels that an expert has."""
        return max(shape.expert_width for shape in self.shapes)

    @property
    def expert_params(self) -> int:
        """The parameters of an expert of the largest width, its row of the router included."""
        return self.router_row_params + self.expert_width * self.expert_channel_params

    def params_per_group(self, kind: str, shape: LayerShape) -> int:
        """Return the number of parameters of one group in a layer of this shape; of a slot in all its experts."""
        width = shape.expert_width or self.expert_width
        return {
            "attention": self.kv_group_params,
            "mlp": self.mlp_channel_params,
            "expert": self.router_row_params + width * self.expert_channel_params,
            "expert_channel": shape.num_experts * self.expert_channel_params,
        }[kind]

    def extra_params(self, kind: str) -> int:
        """Return the parameters of a block of such groups that belong to none of them."""
        return {
            "attention": self.attention_extra_params,
            "mlp": self.mlp_extra_params,
            "expert": self.expert_extra_params,
            "expert_channel": 0,
        }[kind]

    @property
    def smallest_group_params(self) -> int:
        """The parameters of a group of the smallest kind; of channels where the model has any that leave."""
        if self.prunes_expert_channels and not self.mlp_channel_params:
            return self.experts_per_token * self.expert_channel_params
        return self.mlp_channel_params or min(self.kv_group_params, self.expert_params)

    @property
    def params_per_token(self) -> int:
        """The parameters that a token uses: all but those of the experts that it is not routed to."""
        idle = (
            max(0, shape.num_experts - self.experts_per_token) * self.params_per_group("expert", shape)
            for shape in self.shapes
        )
        return self.total_params - sum(idle)

    def params_of_groups(self, kind: str, shape: LayerShape) -> int:
        """Count the parameters of all groups of one kind in a layer of this shape."""
        return shape.size_of(kind) * self.params_per_group(kind, shape)

    def layer_params(self, shape: LayerShape) -> int:
        """Count the parameters of a layer of this shape. A block without groups has none."""
        blocks = sum(
            self.params_of_groups(kind, shape) + self.extra_params(kind)
            for kind in ("attention", "mlp", "expert")
            if shape.size_of(kind)
        )
        return blocks + shape.linear_attention * self.linear_attention_params

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
    attention_groups += sum(parameter.numel() for parameter in head_parameters(full).values())
    channel_params, mlp_extra = _mlp_params(layers, blocks["mlp"])
    expert_channel, router_row, expert_extra = _expert_params(layers, blocks["mlp"])
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
        expert_channel_params=expert_channel,
        router_row_params=router_row,
        expert_extra_params=expert_extra,
        experts_per_token=config.num_experts_per_tok if family.experts else 0,
        query_width=family.query_width,
        fixed_expert_width=family.experts is not None and family.experts.stacked,
        linear_attention_params=0 if linear is None else _params_of_block(linear, LINEAR_ATTENTION),
    )


def _mlp_params(layers: Any, block: Block) -> tuple[int, int]:
    """Count the parameters of a channel, and of an MLP beside its channels; 0 in models without such layers."""
    layer = next((layer for layer in layers if layer.mlp is not None and not has_experts(layer)), None)
    if layer is None:
        return 0, 0
    groups = _params_of_groups(layer, block)
    return groups // layer.mlp.gate_proj.out_features, _params_of_block(layer, block) - groups


def _expert_params(layers: Any, block: Block) -> tuple[int, int, int]:
    """Count the parameters of an expert's channel, of an expert beside those, and of a mixture beside its experts."""
    layer = next((layer for layer in layers if layer.mlp is not None and has_experts(layer)), None)
    if layer is None:
        return 0, 0, 0
    parameters = expert_parameters(layer)
    groups = sum(parameter.numel() for parameter in parameters.values())
    expert = sum(parameter[0].numel() for parameter in parameters.values())
    of_channels = sum(parameters[name][0].numel() for name in (GATE_UP, DOWN, GATE_UP_BIAS) if name in parameters)
    width = expert_width(layer.mlp.experts)
    return of_channels // width, expert - of_channels, _params_of_block(layer, block) - groups


def _shape_of(layer: Any) -> LayerShape:
    attention, mlp, is_linear = attention_of(layer), layer.mlp, has_linear_attention(layer)
    num_kv = 0 if attention is None else attention.k_proj.out_features // attention.head_dim
    if mlp is None:
        return LayerShape(num_kv, 0, linear_attention=is_linear)
    if has_experts(layer):
        experts = layer.mlp.experts
        return LayerShape(num_kv, 0, len(experts.down_proj), expert_width(experts), linear_attention=is_linear)
    return LayerShape(num_kv, mlp.gate_proj.out_features, linear_attention=is_linear)


def _params_of_groups(layer: Any, block: Block) -> int:
    return _params(layer, *block.input_projections) + layer.get_submodule(block.output_projection).weight.numel()


def _params_of_block(layer: Any, block: Block) -> int:
    return _params(layer, *filter(None, block.parts))


def _params(layer: Any, *names: str) -> int:
    return sum(parameter.numel() for name in names for parameter in layer.get_submodule(name).parameters())
