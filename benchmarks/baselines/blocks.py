"""A walk over the attention and MLP blocks of a model that is cut on the way.

N sequences | T tokens | I inputs of a writer | H hidden | K kv groups | R query heads per kv group | D head dim
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from baselines.widths import plan_keeping, uniform_shapes
from hgsp.data.calibration import Calibration
from hgsp.models.decoder import Decoder, watch_inputs
from hgsp.models.families import OUTPUT_PROJECTIONS
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import LayerKeep
from hgsp.pruning.surgery import apply_plan


@dataclass(frozen=True)
class Block:
    """One block on the walk. ``inputs()`` yields what its writer reads, float32 [tokens, I] per batch."""

    index: int
    kind: str
    writer: nn.Linear
    inputs: Callable[[], Iterator[Tensor]]


def walk_blocks(model: Any, input_ids_NT: Tensor, batch_size: int) -> Iterator[Block]:
    """Yield every block in order. What the caller does to a writer reaches the blocks behind it."""
    model.requires_grad_(False)
    decoder = Decoder(model)
    stream = [decoder.embed(input_ids_BT) for input_ids_BT in input_ids_NT.split(batch_size)]
    for index in range(decoder.num_layers):
        with decoder.layer(index) as layer:
            for kind, name in OUTPUT_PROJECTIONS.items():
                writer: Any = layer.get_submodule(name)
                yield Block(index, kind, writer, partial(_writer_inputs, decoder, layer, kind, writer, stream))
                stream = [decoder.call_block(layer, kind, hidden_BTH) for hidden_BTH in stream]


def cut_in_turn(
    model: Any, calibration: Calibration, budget_params: int, batch_size: int, cut: Callable[[Block, int, int], Tensor]
) -> Any:
    """The model with uniform widths, every block cut on inputs that the cut blocks before it give.

    ``cut(block, columns, num_kept)`` returns the groups [num_kept] that stay, in any order, and may change the
    writer's weights; those of the other groups become zero.
    """
    geometry = geometry_of(model)
    shapes = uniform_shapes(geometry, budget_params)
    kept: dict[tuple[int, str], tuple[int, ...]] = {}
    for block in walk_blocks(model, calibration.input_ids, batch_size):
        shape, columns = shapes[block.index], geometry.columns_per_group(block.kind)
        num_groups = block.writer.in_features // columns
        num_kept = shape.num_kv_groups if block.kind == "attention" else shape.mlp_width
        stays = torch.arange(num_groups) if num_kept == num_groups else cut(block, columns, num_kept).cpu()
        dropped = torch.ones(num_groups, dtype=torch.bool).index_fill_(0, stays, 0).repeat_interleave(columns)
        block.writer.weight[:, dropped.to(block.writer.weight.device)] = 0
        kept[block.index, block.kind] = tuple(sorted(stays.tolist()))
    layers = (LayerKeep(kept[index, "attention"], kept[index, "mlp"]) for index in range(geometry.num_layers))
    return apply_plan(model, plan_keeping(layers, geometry, budget_params))


def _writer_inputs(
    decoder: Decoder, layer: nn.Module, kind: str, writer: nn.Linear, stream: list[Tensor]
) -> Iterator[Tensor]:
    seen: list[Tensor] = []
    with watch_inputs({kind: writer}, lambda _name, input_BTI: seen.append(input_BTI)):
        for hidden_BTH in stream:
            decoder.call_block(layer, kind, hidden_BTH)
            yield seen.pop().flatten(0, 1).float()
