"""Moves of the budget search for a plain cut: along what the divergence's gradient says parameters are worth.

At the right plan, parameters are worth the same in every block. What they are worth is read off the gates of the
groups next to the cut, on both sides of it: minus the gradient of KL(dense || cut), per parameter. A move multiplies
the factors by the power of how much a block's worth is above the others', inside one kind or between the two. (Widths
judged by KL: arXiv:2410.14649; theirs evolve, ours follow a gradient.)

L layers | G groups
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hgsp.data.calibration import Calibration
from hgsp.layerwise.walk import LayerWalk
from hgsp.models.decoder import Decoder
from hgsp.pruning.masked import MaskedLayers
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import kept_mask
from hgsp.scoring.groups import ATTENTION, MLP, Floats
from hgsp.scoring.statistics import frozen_parameters
from hgsp.search.kl import DivergenceFromDense
from hgsp.search.search import SearchProblem

#: A block's worth is at most this many times e above or below the others', whatever the gradient says.
LARGEST_LOG = 2.0
#: Fraction of a block's groups on each side of the cut whose gates are read.
BAND = 0.08


class GradientProposals:
    """Judges plans by the divergence of the cut model, and moves along its gradient at the best plan so far.

    A step costs one forward pass over the text, and two more where it is accepted. Holds the dense model's last
    hidden states and one boundary activation per layer besides the model.

    Args:
        decoder: the dense model, resident or read from files; it is not changed.
        start: what plans are cut from.
        calibration: the text of the judge.
        spill_dir: folder for activations; None keeps them in memory.
    """

    report_name: ClassVar[str] = "GradientMoves"  # as reports have it
    #: What a step moves budget between: MLPs of different layers, the two kinds, attentions of different layers.
    names: ClassVar[Sequence[str]] = ("mlp", "kinds", "attention")
    first_step: ClassVar[float] = 0.5
    on_failure: ClassVar[float] = 0.4

    def __init__(
        self,
        decoder: Decoder,
        start: SearchProblem,
        calibration: Calibration,
        *,
        batch_size: int = 4,
        spill_dir: Path | None = None,
    ) -> None:
        self._decoder, self._start = decoder, start
        self._input_ids = calibration.input_ids
        self._batch_size, self._spill_dir = batch_size, spill_dir
        self.fingerprint = f"gradient {calibration.sha256}"

    def __enter__(self) -> GradientProposals:
        self._judge = DivergenceFromDense(self._decoder, self._input_ids, self._batch_size, self._spill_dir)
        return self

    def __exit__(self, *_: object) -> None:
        self._judge.close()

    def measure(self, log_factors_LK: Floats, below: float) -> float:
        """The divergence in nats per token; where it is lower than ``below``, moves go on from these factors."""
        plan = self._start.plan(log_factors_LK)
        gates = MaskedLayers(self._decoder, self._start.geometry, plan)
        gated = Decoder(self._decoder.model, gates)
        walk = LayerWalk(gated, self._input_ids, self._batch_size, keep_hidden_states=True, spill_dir=self._spill_dir)
        with walk, frozen_parameters(self._decoder.model):
            divergence = self._judge.per_token(walk)
            if divergence < below:
                for back in walk.backward(self._judge.with_gradient):
                    for _ in back.run([]):
                        pass
                self._worth_LK = _worth(self._start, plan, gates)
        return divergence

    def direction(self, name: str) -> Floats:
        """By how much the log factors grow in a step of size 1, [L, 2]."""
        worth_LK = self._worth_LK
        least = 0.05 * np.median(np.abs(worth_LK))
        log_LK = np.log(np.maximum(worth_LK, max(least, np.finfo(float).tiny)))
        middle_K = np.median(log_LK, axis=0)
        direction_LK = np.zeros_like(log_LK)
        if name == "kinds":
            direction_LK[:, ATTENTION] = middle_K[ATTENTION] - middle_K[MLP]
        else:
            kind = MLP if name == "mlp" else ATTENTION
            direction_LK[:, kind] = log_LK[:, kind] - middle_K[kind]
        return np.clip(direction_LK, -LARGEST_LOG, LARGEST_LOG)


def _worth(start: SearchProblem, plan: PrunePlan, gates: MaskedLayers) -> Floats:
    """How much one more parameter in each block lowers the divergence sum, by the gates next to the cut. [L, 2]"""
    table, kept = start.table, kept_mask(start.table, plan)
    bounds = np.searchsorted(table.layer * 2 + table.kind, np.arange(2 * start.geometry.num_layers + 1))
    worth_LK = np.empty((start.geometry.num_layers, 2))
    for block, (first, stop) in enumerate(itertools.pairwise(bounds)):
        layer, kind = divmod(block, 2)
        own = slice(first, stop)
        near = _next_to_the_cut(table.score[own], kept[own])
        gradient = gates.gradients[layer, kind].double().numpy()
        worth_LK[layer, kind] = -(gradient[near] / table.cost[own][near]).mean()
    return worth_LK


def _next_to_the_cut(score: Floats, kept: Any) -> Sequence[int]:
    """Indices of the lowest scores that stay and of the highest that leave."""
    band = max(1, round(BAND * len(score)))
    order = np.argsort(score, kind="stable")
    stays = kept[order]
    return np.concatenate([order[stays][:band], order[~stays][-band:]]).tolist()
