"""Importance of groups, from statistics of single matrices gathered layer by layer.

H hidden | N sequences | T tokens | B sequences of a batch
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from hgsp.console.progress import Progress, silent
from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.layerwise.distributed import own_share, sum_over_processes
from hgsp.layerwise.walk import LayerWalk, Objective
from hgsp.models.blocks import LINEARS, OUTPUT_PROJECTIONS
from hgsp.models.decoder import Decoder
from hgsp.models.experts import has_experts
from hgsp.models.geometry import Geometry, geometry_of
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.models.linear_attention import attention_of
from hgsp.scoring.folding import ATTENTION_LINEARS, layer_importance
from hgsp.scoring.methods import Method, WeightMethod, method_named
from hgsp.scoring.names import LABELS
from hgsp.scoring.normalization import LayerImportance
from hgsp.scoring.prior import CosineInfluence, Influence
from hgsp.scoring.statistics import (
    BACKWARD_STATISTICS,
    FORWARD_STATISTICS,
    LayerStatistics,
    frozen_parameters,
    gather_backward,
    gather_forward,
)


@dataclass(frozen=True)
class ScoringOptions:
    """Memory settings of a scoring pass, none of which changes scores beyond float rounding.

    Args:
        batch_size: sequences per call of a layer.
        checkpointing: keep the hidden states of fewer layers, and compute the others again.
        spill_dir: folder for hidden states; None keeps them in memory.
    """

    batch_size: int = 4
    checkpointing: bool = False
    spill_dir: Path | None = None


@dataclass(frozen=True, repr=False)
class Importances:
    """Importance of every group by layer, and the influence of layers if measured.

    ``calibration_loss`` is the mean token loss of the calibration text in nats, None if the method does not compute it.
    """

    by_layer: tuple[LayerImportance, ...]
    influence: Influence | None
    calibration_loss: float | None

    def __repr__(self) -> str:
        return f"Importances({len(self.by_layer)} layers, calibration loss {self.calibration_loss}, {self.influence})"


@fp32_matmul_fallback()
def score_groups(
    decoder: Decoder,
    method: Method | str,
    calibration: Calibration | None = None,
    *,
    with_influence: bool = False,
    options: ScoringOptions | None = None,
    seed: int = 42,
    labels: str = "text",
    expert_channels: bool = False,
    progress: Progress = silent,
) -> Importances:
    """Score every group of the model, float64, in the unit of the method.

    Walks the decoder forward once and, if the method needs gradients, backward once, with the statistics of one layer
    in memory. Gradients are accumulated in float32. Every process of a launch walks its share of the sequences.

    Args:
        calibration: may be None for methods that need no text.
        with_influence: measure the cosine influence of layers and blocks, too.
        labels: "text" takes gradients of the loss on the text's next tokens. "model" draws next tokens from the model,
            seeded: ``fisher`` then estimates the Fisher information, the curvature of the KL divergence.
        expert_channels: score the channels inside experts, too.

    Raises:
        InputError: unknown method or labels, or the method needs text and there is no calibration.
        NumericalError: a statistic is not finite; the message names layer and projection.
    """
    method = method_named(method)
    if labels not in LABELS:
        raise InputError(expected=f"labels from {' or '.join(LABELS)}", got=f"'{labels}'", remedy="change labels")
    if calibration is None and (method.needs or with_influence):
        raise InputError(expected=f"calibration text for {method.name}", got="none", remedy="pass a Calibration")
    geometry = geometry_of(decoder.model).with_expert_channels(expert_channels)
    with frozen_parameters(decoder.model):
        if calibration is None or not (method.needs or with_influence):
            return Importances(_score_weights(decoder, method, geometry, seed), None, None)
        return _score_by_walking(
            decoder, method, geometry, calibration, with_influence, options or ScoringOptions(), seed, labels, progress
        )


def _score_weights(decoder: Decoder, method: Method, geometry: Geometry, seed: int) -> tuple[LayerImportance, ...]:
    """Score by a method that needs no text."""
    found = []
    for index in range(decoder.num_layers):
        with decoder.layer(index) as module:
            found.append(layer_importance(method, LayerStatistics(index, module), geometry, seed))
    return tuple(found)


def _score_by_walking(
    decoder: Decoder,
    method: Method,
    geometry: Geometry,
    calibration: Calibration,
    with_influence: bool,
    options: ScoringOptions,
    seed: int,
    labels: str,
    progress: Progress,
) -> Importances:
    found: dict[int, LayerImportance] = {}
    of_channels = geometry.prunes_expert_channels
    share = own_share(len(calibration.input_ids))
    seq_len = calibration.input_ids.shape[1]
    backward = bool(method.needs & BACKWARD_STATISTICS)
    group_columns = {name: geometry.columns_per_group(kind) for kind, name in OUTPUT_PROJECTIONS.items()}
    walk = LayerWalk(
        decoder,
        calibration.input_ids[share.rows],
        batch_size=1 if "grad_sq" in method.needs else options.batch_size,
        keep_hidden_states=backward,
        checkpointing=options.checkpointing,
        spill_dir=options.spill_dir,
    )
    cosine = CosineInfluence(decoder) if with_influence else None
    with walk:
        for layer_pass in progress(walk.forward(), "forward", decoder.num_layers):
            with cosine.watching(layer_pass) if cosine else nullcontext():
                linears = _linears(layer_pass.module, method)
                needs = method.needs & FORWARD_STATISTICS
                statistics = gather_forward(
                    layer_pass, linears, needs, share, seq_len, group_columns, of_channels=of_channels
                )
            if not backward:
                found[layer_pass.index] = layer_importance(method, statistics, geometry, seed)
        if backward:
            objective = None if labels == "text" else _loss_of_drawn_labels(walk, seed + share.rows.start)
            for back in progress(walk.backward(objective), f"{method.name} scores", decoder.num_layers):
                linears = _linears(back.module, method)
                needs = method.needs & BACKWARD_STATISTICS
                statistics = gather_backward(
                    back, linears, needs, share, seq_len, group_columns, of_channels=of_channels
                )
                found[back.index] = layer_importance(method, statistics, geometry, seed)
                del statistics  # else the gradients of two layers are in memory
    influence = cosine.influence(share.num_sequences * seq_len) if cosine else None
    loss = None
    if backward and labels == "text":
        loss = float(sum_over_processes(walk.losses.sum())) / (share.num_sequences * (seq_len - 1))
    return Importances(tuple(found[index] for index in sorted(found)), influence, loss)


def _loss_of_drawn_labels(walk: LayerWalk, first_seed: int) -> Objective:
    """Return the loss on labels drawn from the model, with one seed per sequence, whatever the batches."""

    def objective(hidden_BTH: Tensor, batch: slice) -> tuple[Tensor, Tensor]:
        seeds = range(first_seed + batch.start, first_seed + batch.stop)
        return walk.decoder.loss_and_gradient(hidden_BTH, walk.input_ids[batch], seeds)

    return objective


def _linears(module: nn.Module, method: Method) -> dict[str, nn.Linear]:
    """Return the Linears of a layer that the method scores: none of experts, nor of linear attention."""
    names = LINEARS if isinstance(method, WeightMethod) else OUTPUT_PROJECTIONS.values()
    attends, experts = attention_of(module) is not None, has_experts(module)
    present = (name for name in names if (attends if name in ATTENTION_LINEARS else not experts))
    return {name: cast(nn.Linear, module.get_submodule(name)) for name in present}
