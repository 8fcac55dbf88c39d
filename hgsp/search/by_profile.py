"""Moves of the budget search for a cut that is reconstructed: the budget's profile over depth and between the kinds.

What a gradient at the cut says is lost is not what is lost once the writers are refitted: later modules make good what
earlier ones lose, so that the same score is worth less in an early layer than in a late one. Every plan is therefore
reconstructed before it is judged, which is too dear to try every layer by itself; what moves is the log factors' level,
slope and bend over the depth, for either kind of block. A move that fails is tried the other way round, smaller.

L layers
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from hgsp.data.calibration import Calibration
from hgsp.layerwise.walk import LayerWalk
from hgsp.models.decoder import Decoder
from hgsp.pruning.select import PrunePlan
from hgsp.pruning.surgery import Surgery
from hgsp.pruning.zero_padded import zero_padded_decoder
from hgsp.reconstruction.reconstruct import check_enough, reconstruct
from hgsp.scoring.groups import ATTENTION, MLP, Floats, depth_profile
from hgsp.search.kl import DivergenceFromDense
from hgsp.search.search import SearchProblem

#: One of this many sequences judges; a plan is reconstructed from the others.
JUDGING = 4
#: Move -> the kind of block and the power of the depth, which runs from -1 to 1.
PROFILES = {
    "mlp slope": (MLP, 1),
    "mlp bend": (MLP, 2),
    "kinds": (MLP, 0),
    "attention slope": (ATTENTION, 1),
    "attention bend": (ATTENTION, 2),
}


class ProfileProposals:
    """Judges plans by the divergence of the reconstructed model, and moves budget over depth and between the kinds.

    A step costs a reconstruction from three quarters of the text and a forward pass over the last one.

    Args:
        decoder: the dense model, resident or read from files; it is not changed.
        start: what plans are cut from.
        calibration: the text; its last quarter judges.
        surgery_of: makes the surgery of a plan; what a reconstruction puts into ``replaced`` is taken out again.
        spill_dir: folder for activations; None keeps them in memory.
        frozen: dense indices of layers that are never touched.
        writer_bias: whether writers are given a bias, which then is all that is fitted.

    Raises:
        InputError: fewer than three sequences.
    """

    names: ClassVar[Sequence[str]] = tuple(PROFILES)
    first_step: ClassVar[float] = 0.7
    on_failure: ClassVar[float] = -0.6

    def __init__(
        self,
        decoder: Decoder,
        start: SearchProblem,
        calibration: Calibration,
        surgery_of: Callable[[PrunePlan], Surgery],
        *,
        batch_size: int = 4,
        spill_dir: Path | None = None,
        frozen: Collection[int] = (),
        writer_bias: bool = False,
    ) -> None:
        self._decoder, self._start, self._surgery_of = decoder, start, surgery_of
        check_enough_to_search(calibration)
        num_fitting = len(calibration.input_ids) - max(1, len(calibration.input_ids) // JUDGING)
        self._fitting = replace(calibration, input_ids=calibration.input_ids[:num_fitting])
        self._judging = calibration.input_ids[num_fitting:]
        self._batch_size, self._spill_dir, self._frozen = batch_size, spill_dir, frozen
        self._writer_bias = writer_bias
        self.fingerprint = f"profile, {'bias' if writer_bias else 'lstsq'}, {calibration.sha256}"

    def __enter__(self) -> ProfileProposals:
        self._judge = DivergenceFromDense(self._decoder, self._judging, self._batch_size, self._spill_dir)
        return self

    def __exit__(self, *_: object) -> None:
        self._judge.close()

    def measure(self, log_factors_LK: Floats, below: float) -> float:
        """The divergence of the reconstructed model in nats per token; ``below`` changes nothing here."""
        plan = replace(self._start.plan(log_factors_LK), writer_bias=self._writer_bias)
        surgery = self._surgery_of(plan)
        reconstruct(
            self._decoder,
            surgery,
            self._fitting,
            batch_size=self._batch_size,
            spill_dir=self._spill_dir,
            frozen=self._frozen,
        )
        zero_padded = zero_padded_decoder(self._decoder, surgery)
        with LayerWalk(zero_padded, self._judging, self._batch_size, spill_dir=self._spill_dir) as walk:
            divergence = self._judge.per_token(walk)
        surgery.replaced.clear()
        return divergence

    def direction(self, name: str) -> Floats:
        """By how much the log factors grow in a step of size 1, [L, 2]."""
        return depth_profile(self._start.geometry.num_layers, *PROFILES[name])


def check_enough_to_search(calibration: Calibration) -> None:
    """Refuse a calibration of which nothing would be left to reconstruct from.

    Raises:
        InputError: fewer than three sequences.
    """
    check_enough(calibration, 3, "to search with: to fit, to hold out and to judge")
