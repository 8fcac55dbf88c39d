"""Proposals of the budget search for plans without reconstruction, along the gradient of the divergence.

At the best plan, one more parameter lowers the divergence by the same amount in every block. This gain is estimated
from the masks of the groups next to the selection threshold, on both sides: minus the gradient of KL(dense || pruned),
per parameter. A step multiplies the factors by a power of a block's gain relative to the others', inside one kind or
between the two. (arXiv:2410.14649 also searches widths by KL, with an evolutionary algorithm.)

L layers | K kinds of block | G groups of one block
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from hgsp.data.calibration import Calibration
from hgsp.models.decoder import Decoder
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import kept_mask
from hgsp.pruning.units import Mask
from hgsp.scoring.groups import ATTENTION, EXPERT, MLP, Floats
from hgsp.search.masked import MaskedDivergence
from hgsp.search.search import SearchProblem

#: Bound on the logarithm of a block's gain relative to the others'.
LARGEST_LOG = 2.0
#: Fraction of a block's groups on each side of the threshold whose masks are read.
BAND = 0.08


class GradientProposals:
    """Measures the divergence of the masked model, and proposes steps along its gradient at the best plan so far.

    A step costs one forward pass over the text, and a backward pass if it is accepted. Holds the last hidden states of
    the dense model and the hidden states between all layers.

    Args:
        decoder: the dense model, in memory or offloaded; it is not changed.
        problem: plans are selected from it.
        calibration: the text to measure on.
        batch_size: sequences per call of a layer.
        spill_dir: folder for hidden states; None keeps them in memory.
    """

    report_name: ClassVar[str] = "GradientMoves"  # part of the report's schema
    #: A step moves budget between the MLPs of layers, between the two kinds, or between the attention blocks of layers.
    names: ClassVar[Sequence[str]] = ("mlp", "kinds", "attention")
    first_step: ClassVar[float] = 0.5
    rejection_factor: ClassVar[float] = 0.4

    def __init__(
        self,
        decoder: Decoder,
        problem: SearchProblem,
        calibration: Calibration,
        *,
        batch_size: int = 4,
        spill_dir: Path | None = None,
    ) -> None:
        self._problem = problem
        self._measured = MaskedDivergence(decoder, problem.geometry, calibration.input_ids, batch_size, spill_dir)
        self.fingerprint = f"gradient {calibration.sha256}"

    def __enter__(self) -> GradientProposals:
        self._measured.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._measured.__exit__()

    def measure(self, log_factors_LK: Floats, below: float) -> float:
        """Return the divergence in nats per token; below ``below``, ``direction`` starts from these factors."""
        plan = self._problem.plan(log_factors_LK)
        divergence, gradients = self._measured.of(plan, below)
        if gradients is not None:
            self._gain_LK = _gain_per_param(self._problem, plan, gradients)
        return divergence

    def direction(self, name: str) -> Floats:
        """Return the change of the log factors in a step of size 1, [L, 2]."""
        smallest = 0.05 * np.median(np.abs(self._gain_LK))
        log_LK = np.log(np.maximum(self._gain_LK, max(smallest, np.finfo(float).tiny)))
        median_K = np.median(log_LK, axis=0)
        direction_LK = np.zeros_like(log_LK)
        if name == "kinds":
            direction_LK[:, ATTENTION] = median_K[ATTENTION] - median_K[MLP]
        else:
            kind = MLP if name == "mlp" else ATTENTION
            direction_LK[:, kind] = log_LK[:, kind] - median_K[kind]
        return np.clip(direction_LK, -LARGEST_LOG, LARGEST_LOG)


def _gain_per_param(problem: SearchProblem, plan: PrunePlan, gradients: Mapping[tuple[int, int], Tensor]) -> Floats:
    """Return the decrease of the summed divergence per parameter added to every block, [L, 2]."""
    table, kept = problem.table, kept_mask(problem.table, plan)
    bounds = np.searchsorted(table.block, np.arange(2 * problem.geometry.num_layers + 1))
    has_groups_LK = np.diff(bounds).reshape(-1, 2) > 0
    gain_LK = np.empty((problem.geometry.num_layers, 2))
    for layer, side in np.argwhere(has_groups_LK).tolist():
        first = bounds[2 * layer + side]
        gradient_G = gradients[layer, side].double().numpy()
        rows = slice(first, first + len(gradient_G))  # of a mixture its experts, which come before slots
        near = _near_threshold(table.score[rows], kept[rows], routed=table.kind[first] == EXPERT)
        gain_LK[layer, side] = -(gradient_G[near] / table.cost[rows][near]).mean()
    for side, has_L in enumerate(has_groups_LK.T):
        gain_LK[~has_L, side] = np.median(gain_LK[has_L, side])  # linear attention: no direction moves it
    return gain_LK


def _near_threshold(score_G: Floats, kept_G: Mask, *, routed: bool) -> Sequence[int]:
    """Return the indices of the kept groups with the lowest scores and of the dropped ones with the highest.

    Args:
        routed: no token reaches a dropped group, so that the kept ones alone have a gradient.
    """
    band = max(1, round(BAND * len(score_G)))
    order = np.argsort(score_G, kind="stable")
    is_kept = kept_G[order]
    dropped = order[~is_kept][-band:]
    return np.concatenate([order[is_kept][:band], dropped[: 0 if routed and is_kept.any() else None]]).tolist()
