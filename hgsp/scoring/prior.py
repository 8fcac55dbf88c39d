"""The hierarchical prior (H-GSP): how much a whole layer, or one of its two blocks, changes what passes through.

L layers | T tokens | H hidden
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
from hgsp.models.families import OUTPUT_PROJECTIONS
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.scoring.groups import Floats


@dataclass(frozen=True, repr=False)
class Influence:
    """Influence of every layer and of its blocks, float64 [L] each, >= 0; ``measure`` says in what unit.

    ``cosine``: mean over tokens of 1 - cos(residual stream before, after), arXiv:2403.03853. ``perplexity``: how much
    the perplexity of the calibration text grows when the layer or block is skipped.
    """

    layer: Floats
    attention: Floats
    mlp: Floats
    measure: str = "cosine"

    def __repr__(self) -> str:
        return f"Influence({self.measure}, {len(self.layer)} layers)"


class InfluenceWatch:
    """Measures cosine influence while a walk goes forward."""

    def __init__(self, decoder: Decoder) -> None:
        self._second_norm = decoder.family.blocks["mlp"].norm
        self._sums = torch.zeros(decoder.num_layers, 3, dtype=torch.float64)

    @contextmanager
    def on(self, layer_pass: ForwardPass) -> Iterator[None]:
        """Watch every batch that one layer runs."""
        index, module = layer_pass.index, layer_pass.module
        seen: dict[str, Tensor] = {}

        def entering(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen["entering"] = args[0]

        def between(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen["between"] = args[0]

        def leaving(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            before, after = seen["entering"], output[0] if isinstance(output, tuple) else output
            middle = seen["between"]
            pairs = ((before, after), (before, middle), (middle, after))
            self._sums[index] += torch.stack([_angle_sum(a, b) for a, b in pairs])

        norm = module.get_submodule(self._second_norm)
        handles = [
            module.register_forward_pre_hook(entering),
            norm.register_forward_pre_hook(between),
            module.register_forward_hook(leaving),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def influence(self, num_tokens: int) -> Influence:
        """The mean over ``num_tokens`` tokens, those of all processes."""
        layer, attention, mlp = (sum_over_processes(self._sums.clone()) / num_tokens).numpy().T
        return Influence(layer, attention, mlp)


def _angle_sum(before_BTH: Tensor, after_BTH: Tensor) -> Tensor:
    """Sum over tokens of 1 - cos, float64 scalar on the CPU; the angle of a token is float32."""
    cosine = nn.functional.cosine_similarity(before_BTH.float(), after_BTH.float(), dim=-1)
    return (1 - cosine).clamp_(min=0).cpu().sum(dtype=torch.float64)


def prior_of(influence: Influence, temperature: float, tau: float | None) -> tuple[Floats, list[str]]:
    """The factor ``B ** temperature`` on the scores of every (layer, kind), [L, 2] float64, and each layer's mode.

    ``B = ln(1 + I_layer)`` where ``I_layer < tau`` (mode "layer"), else ``ln(1 + I_block)`` (mode "block"). ``tau``
    unset is the 25th percentile of ``I_layer``; 0 is always block, inf always layer.
    """
    threshold = float(np.percentile(influence.layer, 25)) if tau is None else tau
    by_layer = (influence.layer < threshold) if not math.isinf(threshold) else np.ones(len(influence.layer), bool)
    blocks_LK = np.stack([influence.attention, influence.mlp], axis=1)
    chosen_LK = np.where(by_layer[:, None], influence.layer[:, None], blocks_LK)
    return np.log1p(chosen_LK) ** temperature, ["layer" if whole else "block" for whole in by_layer]


#: Sequences used by ``perplexity_influence``: every layer adds three variants of their hidden states.
MAX_SKIP_SEQUENCES = 8


@torch.no_grad()
@fp32_matmul_fallback()
def perplexity_influence(decoder: Decoder, input_ids_NT: Tensor) -> Influence:
    """Perplexity lost when a layer, its attention or its MLP is skipped, each on its own; 0 where none is lost.

    One pass over the layers: layer l adds three variants of the hidden states, and all variants go on together, so
    that every layer's weights are needed once. Uses the first ``MAX_SKIP_SEQUENCES`` sequences; holds up to 3L + 1
    times their hidden states [N, T, H].
    """
    input_ids = input_ids_NT[:MAX_SKIP_SEQUENCES]
    variants: dict[tuple[int, str], Tensor] = {(-1, "none"): decoder.embed(input_ids)}
    for index in range(decoder.num_layers):
        unskipped = variants[-1, "none"]
        with decoder.layer(index) as module:
            started = {
                (index, "layer"): unskipped,
                (index, "attention"): _call_silencing(decoder, module, OUTPUT_PROJECTIONS["attention"], unskipped),
                (index, "mlp"): _call_silencing(decoder, module, OUTPUT_PROJECTIONS["mlp"], unskipped),
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


def _call_silencing(decoder: Decoder, module: nn.Module, writer: str, hidden: Tensor) -> Tensor:
    """One layer's output when the Linear ``writer`` adds nothing to the residual stream."""
    handle = module.get_submodule(writer).register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
    try:
        return decoder.call(module, hidden)
    finally:
        handle.remove()
