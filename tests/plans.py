"""Plans for tests, and the oracle: the dense model with what a plan removes silenced instead of cut."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hgsp.models.geometry import Geometry, LayerShape, geometry_of
from hgsp.pruning.plan import LayerKeep, PrunePlan

Drop = Mapping[int, Iterable[int]]


def plan_of(geometry: Geometry, layers: Iterable[LayerKeep]) -> PrunePlan:
    """A plan that keeps exactly this, with its true number of removed parameters."""
    layers = tuple(layers)
    kept = sum(geometry.layer_params(keep.shape) for keep in layers)
    removed = geometry.decoder_params - kept
    return PrunePlan(layers, removed, removed)


def plan_dropping(model: Any, kv: Drop | None = None, mlp: Drop | None = None, layers: Iterable[int] = ()) -> PrunePlan:
    """Drop KV groups ``{layer: indices}``, MLP channels ``{layer: indices}`` and whole layers; keep all else."""
    geometry = geometry_of(model)
    gone = set(layers)

    def keep(index: int, shape: LayerShape) -> LayerKeep:
        if index in gone:
            return LayerKeep((), ())
        drop_kv, drop_mlp = set((kv or {}).get(index, ())), set((mlp or {}).get(index, ()))
        return LayerKeep(
            tuple(k for k in range(shape.num_kv_groups) if k not in drop_kv),
            tuple(m for m in range(shape.mlp_width) if m not in drop_mlp),
            linear_attention=shape.linear_attention,
        )

    return plan_of(geometry, (keep(index, shape) for index, shape in enumerate(geometry.shapes)))


def mixed_plan(model: Any, seed: int = 0) -> PrunePlan:
    """Random MLP channels leave every layer, another number in each; where KV groups may leave, some do."""
    geometry = geometry_of(model)
    prunes = geometry.prunes_kv_groups
    generator = torch.Generator().manual_seed(seed)

    def subset(size: int, keep: int) -> tuple[int, ...]:
        return tuple(sorted(torch.randperm(size, generator=generator)[:keep].tolist()))

    return plan_of(
        geometry,
        (
            LayerKeep(
                subset(
                    shape.num_kv_groups,
                    max(1, shape.num_kv_groups - index % 3) if prunes and shape.num_kv_groups else shape.num_kv_groups,
                ),
                subset(shape.mlp_width, shape.mlp_width // 2 + 3 * index),
                linear_attention=shape.linear_attention,
            )
            for index, shape in enumerate(geometry.shapes)
        ),
    )


@torch.no_grad()
def silenced(model: Any, plan: PrunePlan) -> Any:
    """A copy of the dense model whose o_proj and down_proj read zeros from every group the plan drops.

    The linear attention of a removed layer writes zeros.

    What a writer adds besides its groups (its bias) is silenced where a block leaves the model whole.
    """
    geometry = geometry_of(model)
    columns = geometry.queries_per_kv * geometry.head_dim
    masked = copy.deepcopy(model)
    for layer, shape, keep in zip(masked.model.layers, geometry.shapes, plan.layers, strict=True):
        for group in set(range(shape.num_kv_groups)) - set(keep.kv_groups):
            layer.self_attn.o_proj.weight[:, group * columns : (group + 1) * columns] = 0
        layer.mlp.down_proj.weight[:, sorted(set(range(shape.mlp_width)) - set(keep.mlp_channels))] = 0
        if shape.linear_attention:
            layer.linear_attn.out_proj.weight *= keep.linear_attention
        attention = [] if shape.linear_attention else [(keep.kv_groups, layer.self_attn.o_proj)]
        for kept, writer in (*attention, (keep.mlp_channels, layer.mlp.down_proj)):
            if not kept and writer.bias is not None:
                writer.bias.zero_()
    return masked
