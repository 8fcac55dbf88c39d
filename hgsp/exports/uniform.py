"""The uniform sizes nearest to those of a non-uniform checkpoint, and their cost."""

from __future__ import annotations

from collections.abc import Sequence

from hgsp.models.geometry import Geometry, LayerShape
from hgsp.models.layer_sizes import EXPERT_MULTIPLE

#: Proposed widths are multiples of this for MLPs of ``ALIGNED_FROM`` channels or more.
WIDTH_MULTIPLE = 64
ALIGNED_FROM = 1024


def nearest_uniform(geometry: Geometry) -> LayerShape:
    """Return the shape for all layers that gives about the same number of parameters.

    KV groups, and experts of a mixture, are the mean, rounded; the width takes the rest.
    """
    shapes, num_layers = geometry.shapes, geometry.num_layers
    num_kv = max(1, round(sum(shape.num_kv_groups for shape in shapes) / num_layers))
    if geometry.experts_per_token:
        return _nearest_mixture(geometry, num_kv)
    multiple = WIDTH_MULTIPLE if max(shape.mlp_width for shape in shapes) >= ALIGNED_FROM else 1
    per_layer = geometry.decoder_params / num_layers
    without_channels = geometry.layer_params(LayerShape(num_kv, 0)) + geometry.mlp_extra_params
    width = (per_layer - without_channels) / geometry.mlp_channel_params
    return LayerShape(num_kv, max(multiple, round(width / multiple) * multiple))


def _nearest_mixture(geometry: Geometry, num_kv: int) -> LayerShape:
    """Return the nearest shape of a mixture of experts, no wider than its widest experts."""
    shapes, num_layers = geometry.shapes, geometry.num_layers
    mean = round(sum(shape.num_experts for shape in shapes) / num_layers)
    num_experts = max(geometry.experts_per_token, mean)
    multiple = WIDTH_MULTIPLE if geometry.expert_width >= ALIGNED_FROM else EXPERT_MULTIPLE
    without = geometry.layer_params(LayerShape(num_kv, 0)) + geometry.extra_params("expert")
    channels = geometry.decoder_params / num_layers - without - num_experts * geometry.router_row_params
    width = round(channels / (num_experts * geometry.expert_channel_params) / multiple) * multiple
    return LayerShape(num_kv, 0, num_experts, min(max(multiple, width), geometry.expert_width))


def sizes_of_mixture(shapes: Sequence[LayerShape]) -> str:
    """Return a phrase with the smallest and largest sizes of layers, and of experts where there are some."""
    mixtures = [shape for shape in shapes if shape.num_experts]
    groups, experts, widths = (
        "-".join(str(value) for value in sorted({min(sizes), max(sizes)}))
        for sizes in (
            [shape.num_kv_groups for shape in shapes],
            [shape.num_experts for shape in mixtures],
            [shape.expert_width for shape in mixtures],
        )
    )
    return f"{groups} KV groups, {experts} experts of {widths} channels"


def largest_shape(geometry: Geometry) -> LayerShape:
    """Return the most KV groups and the largest width that any layer has."""
    shapes = geometry.shapes
    return LayerShape(max(shape.num_kv_groups for shape in shapes), max(shape.mlp_width for shape in shapes))


def cost_of(geometry: Geometry, shape: LayerShape) -> str:
    """Return a phrase with the sizes and the parameters of the model in which every layer has this shape."""
    params = geometry.total_params - geometry.decoder_params + geometry.num_layers * geometry.layer_params(shape)
    mlp = f"{shape.num_experts} experts of {shape.expert_width}" if shape.num_experts else f"{shape.mlp_width}"
    return (
        f"{shape.num_kv_groups} KV groups and {mlp} channels in each of {geometry.num_layers} layers "
        f"({params / 1e6:.1f}M parameters, {params / geometry.total_params - 1:+.1%})"
    )
