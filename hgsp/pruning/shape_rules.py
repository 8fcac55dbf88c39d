"""Rules that the shapes of a plan keep: minimum sizes, frozen layers, multiples of channels, equal layers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.models.kinds import KIND_NAMED
from hgsp.models.layer_sizes import EXPERT_MULTIPLE
from hgsp.pruning.names import AUTO_MULTIPLE, AUTO_MULTIPLE_FROM, RATIO_PHRASES

#: Of all parameters; the largest step between two plans whose layers all have the same width.
LARGEST_UNIFORM_STEP = 0.01


@dataclass(frozen=True)
class ShapeRules:
    """Minimum sizes of blocks that are not removed whole, frozen layers, and shapes that an engine takes.

    Args:
        min_kv_groups: at least 1.
        min_mlp_width: channels of an MLP or of each expert, at least 1; rounded up to the multiple.
        freeze_first, freeze_last: numbers of layers that stay as they are.
        mlp_multiple_of: channels leave in blocks of this number, so that an MLP that loses channels is left with a
            multiple of it; None is 64 for MLPs of at least 1,024 channels, else 1. Experts count as MLPs, in multiples
            of ``EXPERT_MULTIPLE`` too.
        equal_kv_groups: every layer keeps the same number of KV groups.
        uniform: every layer keeps the same numbers of KV groups and of channels or experts.
        allow_empty_blocks: the attention or the MLP of a layer may leave whole.
        min_experts: minimum size of a mixture, at least 1; it keeps as many experts as a token uses in any case.

    Raises:
        InputError: a minimum size or a multiple below 1, or rules that exclude each other.
    """

    min_kv_groups: int = 1
    min_mlp_width: int = 32
    freeze_first: int = 0
    freeze_last: int = 0
    mlp_multiple_of: int | None = None
    equal_kv_groups: bool = False
    uniform: bool = False
    allow_empty_blocks: bool = False
    min_experts: int = 1

    def __post_init__(self) -> None:
        if min(self.min_kv_groups, self.min_mlp_width, self.min_experts) < 1:
            raise InputError(
                expected="minimum sizes of at least one KV group, one MLP channel and one expert",
                got=f"{self.min_kv_groups}, {self.min_mlp_width} and {self.min_experts}",
                remedy="use epsilon to remove layers whole, or allow empty blocks",
            )
        if self.mlp_multiple_of is not None and self.mlp_multiple_of < 1:
            raise InputError(
                expected="a multiple of at least 1", got=self.mlp_multiple_of, remedy="use 1 for any number of channels"
            )
        if self.has_equal_layers and (self.freeze_first or self.freeze_last or self.allow_empty_blocks):
            raise InputError(
                expected="equal layers without frozen layers and empty blocks",
                got="both",
                remedy="leave out --uniform and --equal_kv_groups, or the frozen layers and --allow_empty_blocks",
            )

    @property
    def has_equal_layers(self) -> bool:
        """Whether the layers keep equal numbers of KV groups at least."""
        return self.uniform or self.equal_kv_groups

    def frozen_layers(self, num_layers: int) -> frozenset[int]:
        """Return the indices of the layers that are never touched."""
        return frozenset({*range(self.freeze_first), *range(num_layers - self.freeze_last, num_layers)})

    def multiple_for(self, geometry: Geometry, kind: str = "mlp") -> int:
        """Return the multiple of channels in force for the MLPs of a model, or for its experts.

        Uniform plans halve the automatic one until a step of all layers is at most 1 % of the parameters.
        """
        least = EXPERT_MULTIPLE if kind == "expert_channel" else 1
        if self.mlp_multiple_of is not None:
            return math.lcm(self.mlp_multiple_of, least)
        widest = max(geometry.shapes, key=lambda shape: shape.size_of(kind))
        if widest.size_of(kind) < AUTO_MULTIPLE_FROM:
            return least
        multiple = AUTO_MULTIPLE
        step = geometry.num_layers * geometry.params_per_group(kind, widest) if self.uniform else 0
        while multiple * step > LARGEST_UNIFORM_STEP * geometry.total_params and multiple > least:
            multiple //= 2
        return multiple

    def smallest_shapes(self, geometry: Geometry) -> tuple[LayerShape, ...]:
        """Return the smallest shape of every layer whose blocks all stay."""
        frozen = self.frozen_layers(geometry.num_layers)

        def min_width(kind: str) -> int:
            multiple = self.multiple_for(geometry, kind)
            return -(-self.min_mlp_width // multiple) * multiple

        minimum = {
            "attention": self.min_kv_groups
            if geometry.prunes_kv_groups
            else max(s.num_kv_groups for s in geometry.shapes),
            "mlp": min_width("mlp"),
            "expert": max(self.min_experts, geometry.experts_per_token),
            "expert_channel": min_width("expert_channel") if geometry.prunes_expert_channels else geometry.expert_width,
        }
        return tuple(
            shape
            if index in frozen
            else LayerShape(
                *(min(shape.size_of(kind), minimum[kind]) for kind in KIND_NAMED),
                linear_attention=shape.linear_attention,
            )
            for index, shape in enumerate(geometry.shapes)
        )

    def smallest_params(self, geometry: Geometry) -> int:
        """Return the fewest parameters that the decoder layers can be left with."""
        shapes = self.smallest_shapes(geometry)
        params = sum(map(geometry.layer_params, shapes))
        if not self.allow_empty_blocks:
            return params
        frozen = self.frozen_layers(geometry.num_layers)
        saved = {
            index: geometry.layer_params(shape) - geometry.linear_attention_params * shape.linear_attention
            for index, shape in enumerate(shapes)
        }
        attends = [index for index, shape in enumerate(shapes) if shape.num_kv_groups]
        stays = 0 if frozen.intersection(attends) else max(saved[index] for index in attends)
        return params - sum(size for index, size in saved.items() if index not in frozen) + stays

    def check_equal_layers(self, geometry: Geometry) -> None:
        """Refuse a model whose layers cannot all be left with the same sizes by the same steps.

        Raises:
            InputError: equal layers of a model whose layers differ already.
        """
        attention = {shape.num_kv_groups for shape in geometry.shapes if not shape.linear_attention}
        mlps = {replace(shape, num_kv_groups=0, linear_attention=False) for shape in geometry.shapes}
        if self.has_equal_layers and max(len(attention), len(mlps)) > 1:
            raise InputError(
                expected="a model whose layers have the same sizes, for --uniform or --equal_kv_groups",
                got=f"{len(set(geometry.shapes))} different sizes",
                remedy="start from the dense model",
            )


def budget_for_ratio(geometry: Geometry, ratio: float, shape_rules: ShapeRules, ratio_of: str = "all") -> int:
    """Return the parameters to remove for a fraction of ``all`` parameters, or of those of the ``decoder`` layers.

    Raises:
        InputError: the rules make the ratio unreachable; the message has the highest reachable one.
    """
    denominator = geometry.decoder_params if ratio_of == "decoder" else geometry.total_params
    budget = int(ratio * denominator)
    reachable = geometry.decoder_params - shape_rules.smallest_params(geometry)
    if budget > reachable:
        highest = int(1e4 * reachable / denominator) / 1e4
        raise InputError(
            expected=f"a ratio of at most {highest:.4f} of {RATIO_PHRASES[ratio_of]}",
            got=f"{ratio}",
            remedy="lower --pruning_ratio, --min_kv_groups, --min_mlp_width or --min_experts, or freeze fewer layers",
        )
    return budget
