"""ShortGPT (arXiv:2403.03853): remove whole layers, those that change the residual stream least.

``BI_l = 1 - mean_t cos(h_l, h_l+1)``, with h_l the input of layer l; the layers of lowest BI are removed, as many as
fit the budget, so the ratio reached is that of a whole number of layers. GQA makes no difference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from baselines.widths import plan_keeping, top_indices
from hgsp.data.calibration import Calibration
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import LayerShape, geometry_of
from hgsp.pruning.plan import LayerKeep
from hgsp.pruning.surgery import apply_plan


def prune(model: Any, calibration: Calibration, budget_params: int, batch_size: int) -> Any:
    """Return the shallower model; consumes the dense one."""
    geometry = geometry_of(model)
    num_removed = budget_params // geometry.layer_params(geometry.shapes[0])
    kept = top_indices(block_influence(model, calibration.input_ids, batch_size), geometry.num_layers - num_removed)
    layer_shapes = (shape if index in kept else LayerShape(0, 0) for index, shape in enumerate(geometry.shapes))
    layers = (LayerKeep(tuple(range(shape.num_kv_groups)), tuple(range(shape.mlp_width))) for shape in layer_shapes)
    return apply_plan(model, plan_keeping(layers, geometry, budget_params))


@torch.no_grad()
def block_influence(model: Any, input_ids_NT: Tensor, batch_size: int) -> Tensor:
    """Return BI of every layer, float64 [L]."""
    decoder = Decoder(model)
    influence_L = torch.zeros(decoder.num_layers, dtype=torch.float64)
    for input_ids_BT in input_ids_NT.split(batch_size):
        hidden_BTH = decoder.embed(input_ids_BT)
        for index in range(decoder.num_layers):
            with decoder.layer(index) as layer:
                after_BTH = decoder.call(layer, hidden_BTH)
            cosine_BT = nn.functional.cosine_similarity(hidden_BTH.float(), after_BTH.float(), dim=-1)
            influence_L[index] += (1 - cosine_BT).sum().item()
            hidden_BTH = after_BTH
    return influence_L / input_ids_NT.numel()
