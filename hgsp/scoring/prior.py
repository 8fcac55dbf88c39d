"""The hierarchical prior (H-GSP): factors on scores by the influence of whole layers and blocks.

L layers | K kinds of block | N sequences | B of them in a batch | T tokens | H hidden
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hgsp.layerwise.distributed import sum_over_processes
from hgsp.layerwise.walk import ForwardPass
from hgsp.models.decoder import Decoder
from hgsp.models.experts import EXPERTS, has_experts
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.models.linear_attention import output_of
from hgsp.scoring.groups import Floats


@dataclass(frozen=True, repr=False)
class Influence:
    """Influence of every layer and of its two blocks, float64 [L] each, >= 0.

    ``measure`` is "cosine", the mean over tokens of 1 - cos(residual stream before, after) (arXiv:2403.03853), or
    "perplexity", the increase in calibration perplexity without the layer or block.
    """

    layer: Floats
    attention: Floats
    mlp: Floats
    measure: str = "cosine"

    def __repr__(self) -> str:
        return f"Influence({self.measure}, {len(self.layer)} layers)"


class CosineInfluence:
    """Cosine influence, accumulated in float64 during a forward walk."""

    def __init__(self, decoder: Decoder) -> None:
        self._second_entry = decoder.family.blocks["mlp"].entry
        self._sums = torch.zeros(decoder.num_layers, 3, dtype=torch.float64)

    @contextmanager
    def watching(self, layer_pass: ForwardPass) -> Iterator[None]:
        """Accumulate every batch of one layer."""
        index, module = layer_pass.index, layer_pass.module
        seen: dict[str, Tensor] = {}

        def entering(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen["before"] = args[0]

        def between(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen["middle"] = args[0]

        def leaving(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            before, middle = seen["before"], seen["middle"]
            after = output[0] if isinstance(output, tuple) else output
            pairs = ((before, after), (before, middle), (middle, after))
            self._sums[index] += torch.stack([_angle_sum(a, b) for a, b in pairs])

        second = module.get_submodule(self._second_entry)
        handles = [
            module.register_forward_pre_hook(entering),
            second.register_forward_pre_hook(between),
            module.register_forward_hook(leaving),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def influence(self, num_tokens: int) -> Influence:
        """Return the mean over ``num_tokens`` tokens, which are those of all processes."""
        layer, attention, mlp = (sum_over_processes(self._sums.clone()) / num_tokens).numpy().T
        return Influence(layer, attention, mlp)


def _angle_sum(before_BTH: Tensor, after_BTH: Tensor) -> Tensor:
    """Return the sum over tokens of 1 - cos, a float64 scalar on the CPU; cosines are float32."""
    cosine = nn.functional.cosine_similarity(before_BTH.float(), after_BTH.float(), dim=-1)
    return (1 - cosine).clamp_(min=0).cpu().sum(dtype=torch.float64)


def prior_of(influence: Influence, temperature: float, tau: float | None) -> tuple[Floats, list[str]]:
    """Return the factor ``B ** temperature`` of every (layer, block), [L, 2] float64, and the mode of each layer.

    ``B = ln(1 + I_layer)`` if ``I_layer < tau`` (mode "layer"), else ``ln(1 + I_block)`` (mode "block"). ``tau`` None
    is the 25th percentile of ``I_layer``; 0 always gives "block", inf always "layer".
    """
    threshold = float(np.percentile(influence.layer, 25)) if tau is None else tau
    below_L = (influence.layer < threshold) if not math.isinf(threshold) else np.ones(len(influence.layer), bool)
    blocks_LK = np.stack([influence.attention, influence.mlp], axis=1)
    chosen_LK = np.where(below_L[:, None], influence.layer[:, None], blocks_LK)
    return np.log1p(chosen_LK) ** temperature, ["layer" if is_below else "block" for is_below in below_L]


#: Sequences that ``perplexity_influence`` uses: every layer adds three variants of their hidden states.
MAX_SKIP_SEQUENCES = 8


@torch.no_grad()
@fp32_matmul_fallback()
def perplexity_influence(decoder: Decoder, input_ids_NT: Tensor) -> Influence:
    """Measure the increase in perplexity without each layer, attention block and MLP block; 0 instead of a decrease.

    One pass over the layers, each of which adds three variants of the hidden states, so that weights are read once.
    Holds up to 3L + 1 copies of the hidden states [N, T, H] of the first ``MAX_SKIP_SEQUENCES`` sequences.
    """
    input_ids = input_ids_NT[:MAX_SKIP_SEQUENCES]
    variants: dict[tuple[int, str], Tensor] = {(-1, "none"): decoder.embed(input_ids)}
    for index in range(decoder.num_layers):
        unskipped = variants[-1, "none"]
        with decoder.layer(index) as module:
            started = {
                (index, "layer"): unskipped,
                (index, "attention"): _call_without(decoder, module, "attention", unskipped),
                (index, "mlp"): _call_without(decoder, module, "mlp", unskipped),
            }
            variants = {key: decoder.call(module, hidden) for key, hidden in variants.items()} | started
    tokens = input_ids.shape[0] * (input_ids.shape[1] - 1)
    losses = {key: decoder.loss_and_gradient(hidden, input_ids)[0].sum() for key, hidden in variants.items()}
    perplexity = {key: math.exp(float(loss) / tokens) for key, loss in losses.items()}
    dense = perplexity[-1, "none"]
    layer, attention, mlp = (
        np.array([max(perplexity[index, part] - dense, 0.0) for index in range(decoder.num_layers)])
        for part in ("layer", "attention", "mlp")
    )
    return Influence(layer, attention, mlp, "perplexity")


def _call_without(decoder: Decoder, module: nn.Module, block: str, hidden: Tensor) -> Tensor:
    """Return the output of a layer, [B, T, H], with zeros as the output of one block."""
    last = EXPERTS if block == "mlp" and has_experts(module) else output_of(module, block)
    handle = module.get_submodule(last).register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
    try:
        return decoder.call(module, hidden)
    finally:
        handle.remove()
