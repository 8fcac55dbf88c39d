"""A walk over the attention and MLP blocks of a model that is pruned along the way.

N sequences | T tokens | I inputs of an output projection | H hidden | R query heads per kv group | D head dim
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from baselines.widths import plan_keeping, uniform_shapes
from hgsp.data.calibration import Calibration
from hgsp.models.blocks import OUTPUT_PROJECTIONS
from hgsp.models.decoder import Decoder, watch_inputs
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import LayerKeep
from hgsp.pruning.surgery import apply_plan


@dataclass(frozen=True)
class Block:
    """One block of the walk; ``inputs()`` yields its output projection's inputs, float32 [tokens, I] per batch."""

    index: int
    kind: str
    projection: nn.Linear
    inputs: Callable[[], Iterator[Tensor]]


def walk_blocks(model: Any, input_ids_NT: Tensor, batch_size: int) -> Iterator[Block]:
    """Yield every block in order; later blocks see the changes made to an output projection."""
    model.requires_grad_(False)
    decoder = Decoder(model)
    hidden_states = [decoder.embed(input_ids_BT) for input_ids_BT in input_ids_NT.split(batch_size)]
    for index in range(decoder.num_layers):
        with decoder.layer(index) as layer:
            for kind, name in OUTPUT_PROJECTIONS.items():
                projection: Any = layer.get_submodule(name)
                inputs = partial(_projection_inputs, decoder, layer, kind, projection, hidden_states)
                yield Block(index, kind, projection, inputs)
                hidden_states = [decoder.call_block(layer, kind, hidden_BTH) for hidden_BTH in hidden_states]


def prune_sequentially(
    model: Any,
    calibration: Calibration,
    budget_params: int,
    batch_size: int,
    select: Callable[[Block, int, int], Tensor],
) -> Any:
    """Prune to uniform widths, each block on inputs from the pruned blocks before it.

    ``select(block, columns, num_kept)`` returns the groups to keep [num_kept], in any order, and may change the output
    projection's weights; those of the other groups are zeroed.
    """
    geometry = geometry_of(model)
    shapes = uniform_shapes(geometry, budget_params)
    kept: dict[tuple[int, str], tuple[int, ...]] = {}
    for block in walk_blocks(model, calibration.input_ids, batch_size):
        shape, columns = shapes[block.index], geometry.columns_per_group(block.kind)
        num_groups = block.projection.in_features // columns
        num_kept = shape.num_kv_groups if block.kind == "attention" else shape.mlp_width
        chosen = torch.arange(num_groups) if num_kept == num_groups else select(block, columns, num_kept).cpu()
        kept[block.index, block.kind] = tuple(sorted(chosen.tolist()))
        zero_columns(block.projection, columns, kept[block.index, block.kind])
    layers = (LayerKeep(kept[index, "attention"], kept[index, "mlp"]) for index in range(geometry.num_layers))
    return apply_plan(model, plan_keeping(layers, geometry, budget_params))


def zero_columns(projection: nn.Linear, columns_per_group: int, kept: Sequence[int]) -> None:
    """Zero the columns of the groups that an output projection loses, in place."""
    pruned = torch.ones(projection.in_features // columns_per_group, dtype=torch.bool)
    pruned[list(kept)] = False
    projection.weight[:, pruned.repeat_interleave(columns_per_group).to(projection.weight.device)] = 0


def _projection_inputs(
    decoder: Decoder, layer: nn.Module, kind: str, projection: nn.Linear, hidden_states: list[Tensor]
) -> Iterator[Tensor]:
    seen: list[Tensor] = []
    with watch_inputs({kind: projection}, lambda _name, input_BTI: seen.append(input_BTI)):
        for hidden_BTH in hidden_states:
            decoder.call_block(layer, kind, hidden_BTH)
            yield seen.pop().flatten(0, 1).float()
