"""The uniform sizes nearest to those of a non-uniform checkpoint, and their cost."""

from __future__ import annotations

from hgsp.models.geometry import Geometry, LayerShape

#: Proposed widths are multiples of this for MLPs of ``ALIGNED_FROM`` channels or more.
WIDTH_MULTIPLE = 64
ALIGNED_FROM = 1024


def nearest_uniform(geometry: Geometry) -> LayerShape:
    """Return the shape for all layers that gives about the same number of parameters.

    KV groups are the mean, rounded; the width takes the rest.
    """
    shapes, num_layers = geometry.shapes, geometry.num_layers
    num_kv = max(1, round(sum(shape.num_kv_groups for shape in shapes) / num_layers))
    multiple = WIDTH_MULTIPLE if max(shape.mlp_width for shape in shapes) >= ALIGNED_FROM else 1
    per_layer = geometry.decoder_params / num_layers
    without_channels = geometry.layer_params(LayerShape(num_kv, 0)) + geometry.mlp_extra_params
    width = (per_layer - without_channels) / geometry.mlp_channel_params
    return LayerShape(num_kv, max(multiple, round(width / multiple) * multiple))


def largest_shape(geometry: Geometry) -> LayerShape:
    """Return the most KV groups and the largest width that any layer has."""
    shapes = geometry.shapes
    return LayerShape(max(shape.num_kv_groups for shape in shapes), max(shape.mlp_width for shape in shapes))


def cost_of(geometry: Geometry, shape: LayerShape) -> str:
    """Return a phrase with the sizes and the parameters of the model in which every layer has this shape."""
    params = geometry.total_params - geometry.decoder_params + geometry.num_layers * geometry.layer_params(shape)
    return (
        f"{shape.num_kv_groups} KV groups and {shape.mlp_width} channels in each of {geometry.num_layers} layers "
        f"({params / 1e6:.1f}M parameters, {params / geometry.total_params - 1:+.1%})"
    )
