"""Folding: the importance of the groups of one layer, from statistics and saliencies of its matrices.

K kv groups | R query heads per kv group | D head dim | H hidden | M mlp width | E experts | W channels of each |
O outputs | I inputs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hgsp.errors import not_finite
from hgsp.models.blocks import ATTENTION_INPUTS, ATTENTION_OUTPUT, MLP_INPUTS, MLP_OUTPUT, head_parameters
from hgsp.models.decoder import weight_not_finite
from hgsp.models.experts import DOWN, EXPERTS, GATE_UP, ROUTER, as_linear, expert_parameters, has_experts
from hgsp.models.geometry import Geometry
from hgsp.models.linear_attention import attention_of
from hgsp.scoring.methods import ColumnMethod, GroupMethod, MaskMethod, Method, OutputMethod, WeightMethod
from hgsp.scoring.normalization import LayerImportance, kinds_in
from hgsp.scoring.slots import CHANNELS
from hgsp.scoring.statistics import LayerStatistics

ATTENTION_LINEARS, MLP_LINEARS = (*ATTENTION_INPUTS, ATTENTION_OUTPUT), (*MLP_INPUTS, MLP_OUTPUT)
#: The importance of a block that has no groups, as linear attention.
_NO_GROUPS = torch.zeros(0, dtype=torch.float64)


def layer_importance(method: Method, statistics: LayerStatistics, geometry: Geometry, seed: int) -> LayerImportance:
    """Return the importance of the groups of one layer, float64; where the geometry says so, of experts' channels too.

    Raises:
        NumericalError: an importance is not finite; the message names the layer, and a weight or the kind of group.
    """
    if isinstance(method, GroupMethod):
        generator = torch.Generator().manual_seed(seed + statistics.index)
        shape = geometry.shapes[statistics.index]
        importance = {
            kind.name: method.groups(shape.size_of(kind.name), geometry.params_per_group(kind.name, shape), generator)
            for kind in shape.kinds
        }
        if geometry.prunes_expert_channels and shape.num_experts:
            size = shape.num_experts, shape.expert_width
            importance[CHANNELS] = method.groups(math.prod(size), geometry.expert_channel_params, generator).view(size)
    elif isinstance(method, ColumnMethod):
        importance = _columns(method, statistics, geometry)
    elif isinstance(method, (MaskMethod, OutputMethod)):
        importance = {
            kind: method.groups(statistics.values[name]).cpu().double()
            for kind, name in _outputs(statistics.module).items()
        }
        if geometry.prunes_expert_channels and has_experts(statistics.module):
            reached_E1 = {name: values[:, None] for name, values in statistics.values[EXPERTS].items()}
            importance[CHANNELS] = method.groups(reached_E1 | statistics.values[DOWN]).cpu().double()
    else:
        importance = _weights(method, statistics, geometry)
    importance.setdefault("attention", _NO_GROUPS)
    for kind in kinds_in(importance):
        if not importance[kind].isfinite().all():
            where = weight_not_finite(statistics.module)
            raise not_finite("weight" if where else f"{method.name} importance", statistics.index, where or kind)
    return {kind: values.numpy() for kind, values in importance.items()}


def _outputs(module: Any) -> dict[str, str]:
    """Return the kinds of the groups of a layer, and the names of the output projections, or of the experts."""
    attention = {"attention": ATTENTION_OUTPUT} if attention_of(module) is not None else {}
    return attention | ({"expert": EXPERTS} if has_experts(module) else {"mlp": MLP_OUTPUT})


def _columns(method: ColumnMethod, statistics: LayerStatistics, geometry: Geometry) -> dict[str, Tensor]:
    """Score the columns of output projections, and add those of a group."""
    module = statistics.module

    def of_linear(name: str) -> Tensor:
        linear: Any = module.get_submodule(name)
        return method.columns(linear.weight, statistics.values.get(name, {})).cpu().double()

    importance = {}
    if attention_of(module) is not None:
        attention_KC = of_linear(ATTENTION_OUTPUT).unflatten(0, (-1, geometry.columns_per_group("attention")))
        importance["attention"] = attention_KC.sum(1)
    if not has_experts(module):
        return importance | {"mlp": of_linear(MLP_OUTPUT)}
    experts, values = module.get_submodule(EXPERTS), statistics.values.get(DOWN, {})
    columns = [
        method.columns(as_linear(experts, matrix), _of_expert(values, index))
        for index, matrix in enumerate(expert_parameters(module)[DOWN])
    ]
    importance["expert"] = torch.stack([_float64_sum(own, 0) for own in columns])
    if geometry.prunes_expert_channels:
        importance[CHANNELS] = torch.stack(columns).cpu().double()
    return importance


def _weights(method: WeightMethod, statistics: LayerStatistics, geometry: Geometry) -> dict[str, Tensor]:
    """Score single weights, and add those of a group."""
    module = statistics.module
    attends = attention_of(module) is not None
    present = (*ATTENTION_LINEARS * attends, *MLP_LINEARS * (not has_experts(module)))
    linears: dict[str, Any] = {name: module.get_submodule(name) for name in present}

    def saliency(key: str) -> Tensor:
        name = key.removesuffix(".bias")
        parameter = linears[name].bias if key.endswith(".bias") else linears[name].weight
        if parameter is None:
            return linears[name].weight.new_zeros(len(linears[name].weight), dtype=torch.float32)
        return method.saliency(parameter, statistics.values.get(key, {}))

    R, D = geometry.queries_per_kv, geometry.head_dim
    K = geometry.shapes[statistics.index].num_kv_groups
    importance = fold_attention(saliency, K, R, D, geometry.query_width) if attends else {}
    for name, parameter in head_parameters(module).items():
        of_heads = method.saliency(parameter, statistics.values.get(name, {}))
        importance["attention"] += _float64_sum(of_heads.view(K, R), 1)
    if not has_experts(module):
        return importance | fold_mlp(saliency)
    parameters, experts = expert_parameters(module), module.get_submodule(EXPERTS)

    def of_expert(name: str, index: int) -> Tensor:
        values = _of_expert(statistics.values.get(name, {}), index)
        matrices = {key: as_linear(experts, value) if value.ndim == 2 else value for key, value in values.items()}
        return method.saliency(as_linear(experts, parameters[name][index]), matrices)

    beside_E = _float64_sum(method.saliency(parameters[ROUTER], statistics.values.get(ROUTER, {})), 1)
    for name, parameter in parameters.items():
        if name not in (ROUTER, GATE_UP, DOWN):
            beside_E += _of_biases(method, parameter, statistics.values.get(name, {}))
    folded = fold_experts(of_expert, beside_E)
    if not geometry.prunes_expert_channels:
        folded = {name: values for name, values in folded.items() if not name.startswith(CHANNELS)}
    return importance | folded


def _of_biases(method: WeightMethod, bias: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """Return the saliency of the biases of every expert, one [E] or several [E, O] for each, float64 [E]."""
    found = method.saliency(bias.flatten(), {name: value.flatten() for name, value in values.items()})
    return _float64_sum(found.view(len(bias), -1), 1)


def _of_expert(values: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Return the statistics of the matrix of one expert."""
    return {name: value[index] for name, value in values.items()}


def fold_attention(
    saliency: Callable[[str], Tensor], K: int, R: int, D: int, query_width: int = 1
) -> dict[str, Tensor]:
    """Sum per-weight saliency over everything that is removed with a KV group.

    Query heads of KV head k are rows k*R*D to (k+1)*R*D, the order of ``repeat_kv``, with ``query_width`` times as
    many rows of the query projection.

    Args:
        saliency: returns float32 [O, I] for the name of a Linear, and [O] for its bias under ``name + ".bias"``, zeros
            if it has none.

    Returns:
        "attention" [K], float64, and the share of the output projection in it, "attention.output".
    """
    query, key, value = (_rows(saliency, name) for name in ATTENTION_INPUTS)
    inputs_K = query.view(K, query_width * R * D).sum(1) + key.view(K, D).sum(1) + value.view(K, D).sum(1)
    output_K = _float64_sum(saliency(ATTENTION_OUTPUT), 0).view(K, R * D).sum(1)
    return {"attention": inputs_K + output_K, "attention.output": output_K}


def fold_mlp(saliency: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """Sum per-weight saliency over everything that is removed with a channel, as ``fold_attention``: "mlp" [M]."""
    output_M = _float64_sum(saliency(MLP_OUTPUT), 0)
    inputs_M = _rows(saliency, "mlp.gate_proj") + _rows(saliency, "mlp.up_proj")
    return {"mlp": inputs_M + output_M, "mlp.output": output_M}


def fold_experts(saliency: Callable[[str, int], Tensor], beside_E: Tensor) -> dict[str, Tensor]:
    """Sum per-weight saliency over everything that is removed with an expert, or with one of its channels.

    "expert" is [E] and "expert_channel" [E, W]; both have the share of their outputs beside them.

    Args:
        saliency: returns float32 [2M, H] for ``GATE_UP`` and an expert, and [H, M] for ``DOWN``.
        beside_E: of the router's rows, and of biases, float64 [E].
    """
    totals: dict[str, list[Tensor]] = {DOWN: [], GATE_UP: []}
    channels: dict[str, list[Tensor]] = {DOWN: [], GATE_UP: []}
    for name, dim in ((DOWN, 0), (GATE_UP, 1)):
        for index in range(len(beside_E)):
            values = saliency(name, index)
            totals[name].append(values.sum().cpu().double())
            channels[name].append(_float64_sum(values, dim).view(dim + 1, -1).sum(0))
    output_E, output_EW = torch.stack(totals[DOWN]), torch.stack(channels[DOWN])
    return {
        "expert": beside_E + torch.stack(totals[GATE_UP]) + output_E,
        "expert.output": output_E,
        CHANNELS: torch.stack(channels[GATE_UP]) + output_EW,
        f"{CHANNELS}.output": output_EW,
    }


def _rows(saliency: Callable[[str], Tensor], name: str) -> Tensor:
    return _float64_sum(saliency(name), 1) + saliency(f"{name}.bias").cpu().double()


def _float64_sum(values: Tensor, dim: int) -> Tensor:
    """Return the sum over one dimension, float64 on the CPU; torch adds float32 pairwise, precise enough here."""
    return values.sum(dim).cpu().double()
