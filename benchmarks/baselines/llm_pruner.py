"""LLM-Pruner with its first-order, element-wise importance (arXiv:2305.11627).

``I(group) = sum of |w * dL/dw|`` over the weights removed with it, L the calibration loss, its gradient taken once, on
the dense model. Local, the published default: every layer of a band loses the same fraction, each block its
lowest-scoring groups; of 32 layers, the first four and the last two lie outside the band and are not pruned. Global:
one ranking over the band.

Adapted to GQA: a group is a KV head with its query heads, biases included, so the importance of ``q_proj`` and
``o_proj`` is folded onto KV heads. Query head h reads KV head h // R. ``strided`` folds it onto h % K instead, the
mistake of assigning every K-th query head to the same KV head: with R > 1 and K > 1, the heads scored are not the heads
removed. This matters only if KV groups are removed at all, and their number per layer is rounded down: of three groups,
none up to a ratio of one third. Calibration uses the same text as every setting, not ten short samples. The global
ranking does not divide by cost.

K kv groups | R query heads per kv group | D head dim | M mlp width
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from baselines.widths import global_plan, uniform_plan
from hgsp.data.calibration import Calibration
from hgsp.layerwise.distributed import Share
from hgsp.layerwise.walk import LayerWalk
from hgsp.models.blocks import LINEARS
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.pruning.surgery import apply_plan
from hgsp.scoring.statistics import gather_backward

#: The band of pruned layers, in a model of 32.
FIRST, STOP, OF = 4, 30, 32


def prune(
    model: Any,
    calibration: Calibration,
    budget_params: int,
    batch_size: int,
    *,
    strided: bool = False,
    globally: bool = False,
) -> Any:
    """Return the pruned model; consumes the dense one."""
    geometry = geometry_of(model)
    scores = group_scores(model, calibration, batch_size, strided)
    layers = band(geometry.num_layers)
    if globally:
        shape_rules = ShapeRules(1, 1, freeze_first=layers.start, freeze_last=geometry.num_layers - layers.stop)
        return apply_plan(model, global_plan(scores, geometry, budget_params, shape_rules))
    return apply_plan(model, uniform_plan(scores, geometry, budget_params, layers))


def band(num_layers: int) -> range:
    """Return the layers to prune, in the published proportions."""
    return range(round(FIRST / OF * num_layers), round(STOP / OF * num_layers))


def group_scores(model: Any, calibration: Calibration, batch_size: int, strided: bool) -> list[dict[str, Tensor]]:
    """Return the importance of every group per layer, float64: ``{"attention": [K], "mlp": [M]}``."""
    model.requires_grad_(False)
    geometry = geometry_of(model)
    num_sequences, seq_len = calibration.input_ids.shape
    share = Share(0, 1, num_sequences)
    found: dict[int, dict[str, Tensor]] = {}
    with LayerWalk(Decoder(model), calibration.input_ids, batch_size, keep_hidden_states=True) as walk:
        for layer_pass in walk.forward():
            layer_pass.run()
        for back in walk.backward():
            linears: dict[str, Any] = {name: back.module.get_submodule(name) for name in LINEARS}
            gradients = gather_backward(back, linears, frozenset({"grad"}), share, seq_len, {}).values
            products = {
                key: (back.module.get_parameter(_parameter(key)) * by_name["grad"]).abs().double().cpu()
                for key, by_name in gradients.items()
            }
            found[back.index] = fold(products, geometry, strided)
    return [found[index] for index in range(geometry.num_layers)]


def fold(products: Mapping[str, Tensor], geometry: Geometry, strided: bool) -> dict[str, Tensor]:
    """Sum the values of a layer's weights ``name`` [O, I] and biases ``name.bias`` [O] over groups: [K] and [M]."""
    R, D = geometry.queries_per_kv, geometry.head_dim

    def rows(name: str) -> Tensor:
        return products[name].sum(1) + products.get(f"{name}.bias", 0)

    def heads(values: Tensor) -> Tensor:
        return values.unflatten(0, (-1, D)).sum(1)

    query_heads = heads(rows("self_attn.q_proj") + products["self_attn.o_proj"].sum(0))  # [K * R]
    by_group_K = query_heads.view(R, -1).sum(0) if strided else query_heads.view(-1, R).sum(1)
    return {
        "attention": by_group_K + heads(rows("self_attn.k_proj") + rows("self_attn.v_proj")),
        "mlp": rows("mlp.gate_proj") + rows("mlp.up_proj") + products["mlp.down_proj"].sum(0),
    }


def _parameter(key: str) -> str:
    return key if key.endswith(".bias") else f"{key}.weight"
