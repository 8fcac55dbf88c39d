"""Costs: the units in which the ranking counts a group, and in which budgets are stated.

Every cost is that of one group in each block (attention, MLP) of the dense model, float64 [L, 2], without the fixed
part that a block has whatever its size; the groups of an MLP are channels or experts. A cost of 0 means that removing
such groups saves nothing of this unit.

L layers | K kv groups | R query heads per kv group | D head dim | H hidden
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hgsp.costs.latency import Floats, LatencyTable, Workload
from hgsp.costs.names import COST_NAMES
from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape


@dataclass(frozen=True)
class CostOptions:
    """The circumstances that costs depend on.

    Args:
        value_bytes: of one weight, and of one value in the KV cache.
        context_length: tokens that a new token attends to.
        table: measured seconds; only the latency needs it.
        workload: the pass whose seconds count; None is the table's default.
    """

    value_bytes: int = 2
    context_length: int = 2048
    table: LatencyTable | None = None
    workload: Workload | None = None


Cost = Callable[[Geometry, CostOptions], Floats]


def params(geometry: Geometry, _options: CostOptions) -> Floats:
    """Return the parameters of a group, biases included."""
    return np.array(
        [[geometry.params_per_group(kind.name, shape) for kind in shape.kinds] for shape in geometry.shapes],
        dtype=np.float64,
    )


def bytes_of_weights(geometry: Geometry, options: CostOptions) -> Floats:
    """Return the bytes of a group's parameters."""
    return params(geometry, options) * options.value_bytes


def macs(geometry: Geometry, options: CostOptions) -> Floats:
    """Return the multiply-accumulates of a group for one token: linear weights, and attention to the context.

    HD(WR+R+2) + 2RD * context for a KV group with W rows of the query projection per row of a head, 3H for an MLP
    channel. An expert saves H, its row of the router: a token uses as many experts as before.
    """
    hidden, head_dim, queries = geometry.hidden_size, geometry.head_dim, geometry.queries_per_kv
    rows = (geometry.query_width + 1) * queries + 2
    attention = hidden * head_dim * rows + 2 * queries * head_dim * options.context_length
    return _of_blocks(geometry, {"attention": attention, "mlp": 3 * hidden, "expert": hidden})


def kv_bytes(geometry: Geometry, options: CostOptions) -> Floats:
    """Return the bytes that one token adds to the KV cache of a group: 0 for MLP channels and experts."""
    return _of_blocks(geometry, {"attention": 2 * geometry.head_dim * options.value_bytes, "mlp": 0, "expert": 0})


def latency(geometry: Geometry, options: CostOptions) -> Floats:
    """Return the measured seconds of a group, the mean over the sizes of its block.

    Raises:
        InputError: no table, one of another geometry, or a workload outside it.
    """
    if options.table is None:
        raise InputError(expected="a latency table", got="none", remedy="measure one with `hgsp profile`")
    options.table.check(geometry)
    return options.table.marginal_seconds(geometry.shapes, options.workload or options.table.default_workload)


#: A new cost is one function, one line here and one in ``COST_NAMES``.
COSTS: Mapping[str, Cost] = {
    "params": params,
    "bytes": bytes_of_weights,
    "macs": macs,
    "kv_bytes": kv_bytes,
    "latency": latency,
}
assert COSTS.keys() == COST_NAMES.keys()


def weight_bytes(geometry: Geometry, shapes: Sequence[LayerShape], value_bytes: int) -> int:
    """Return the bytes of all weights of a model with layers of these shapes; tied embeddings count once."""
    outside = geometry.total_params - geometry.decoder_params
    return (outside + sum(map(geometry.layer_params, shapes))) * value_bytes


def kv_cache_bytes(geometry: Geometry, shapes: Sequence[LayerShape], value_bytes: int) -> int:
    """Return the bytes that one token adds to the KV cache of all layers."""
    return geometry.kv_cache_bytes_per_token(tuple(shapes), value_bytes)


def _of_blocks(geometry: Geometry, costs: Mapping[str, int]) -> Floats:
    return np.array([[costs[kind.name] for kind in shape.kinds] for shape in geometry.shapes], dtype=np.float64)
