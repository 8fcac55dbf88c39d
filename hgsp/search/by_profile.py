"""Moves of the budget search for a cut that is reconstructed: the budget's profile over depth and between the kinds.

What a gradient at the cut says is lost is not what is lost once the writers are refitted: later modules make good what
earlier ones lose, so that the same score is worth less in an early layer than in a late one. Every plan is therefore
reconstructed before it is judged, which is too dear to try every layer by itself; what moves is the log factors' level,
slope and bend over the depth, for either kind of block. A move that fails is tried the other way round, smaller.

L layers
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from hgsp.data.calibration import Calibration
from hgsp.layerwise.walk import LayerWalk
from hgsp.models.decoder import Decoder
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.surgery import Surgery
from hgsp.pruning.zero_padded import zero_padded_decoder
from hgsp.reconstruction.reconstruct import ReconstructionOptions, check_enough, plan_for, reconstruct
from hgsp.reconstruction.resume import ResumeState
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
        options: how every plan is reconstructed.
        read: returns a dense tensor by its name; default: the parameters of the model.
        tensors_dir: folder for refitted tensors, removed after every step; None keeps them in memory.

    Raises:
        InputError: fewer than three sequences.
    """

    report_name: ClassVar[str] = "ProfileMoves"  # as reports have it
    names: ClassVar[Sequence[str]] = tuple(PROFILES)
    first_step: ClassVar[float] = 0.7
    on_failure: ClassVar[float] = -0.6

    def __init__(
        self,
        decoder: Decoder,
        start: SearchProblem,
        calibration: Calibration,
        options: ReconstructionOptions | None = None,
        *,
        read: Callable[[str], Tensor] | None = None,
        tensors_dir: Path | None = None,
    ) -> None:
        self._decoder, self._start, self._read = decoder, start, read
        self._options, self._tensors_dir = options or ReconstructionOptions(), tensors_dir
        check_enough_to_search(calibration)
        num_fitting = len(calibration.input_ids) - max(1, len(calibration.input_ids) // JUDGING)
        self._fitting = replace(calibration, input_ids=calibration.input_ids[:num_fitting])
        self._judging = calibration.input_ids[num_fitting:]
        self.fingerprint = f"profile, {self._options.method}, {calibration.sha256}"

    def __enter__(self) -> ProfileProposals:
        self._judge = DivergenceFromDense(
            self._decoder, self._judging, self._options.batch_size, self._options.spill_dir
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._judge.close()

    def measure(self, log_factors_LK: Floats, below: float) -> float:
        """The divergence of the reconstructed model in nats per token; ``below`` changes nothing here."""
        plan = plan_for(self._options.method, self._start.plan(log_factors_LK))
        surgery = Surgery(self._decoder.model, plan, read=self._read)
        with self._refitted_on_disk(plan) as resume:
            fitted = reconstruct(self._decoder, surgery, self._fitting, self._options, resume=resume)
            zero_padded = zero_padded_decoder(self._decoder, surgery.replacing(fitted.tensors))
            batch_size, spill_dir = self._options.batch_size, self._options.spill_dir
            with LayerWalk(zero_padded, self._judging, batch_size, spill_dir=spill_dir) as walk:
                return self._judge.per_token(walk)

    @contextmanager
    def _refitted_on_disk(self, plan: PrunePlan) -> Iterator[ResumeState | None]:
        if self._tensors_dir is None:
            yield None
            return
        resume = ResumeState(self._tensors_dir, f"{self.fingerprint} {plan.layers}")
        try:
            yield resume
        finally:
            resume.close()

    def direction(self, name: str) -> Floats:
        """By how much the log factors grow in a step of size 1, [L, 2]."""
        return depth_profile(self._start.geometry.num_layers, *PROFILES[name])


def check_enough_to_search(calibration: Calibration) -> None:
    """Refuse a calibration of which nothing would be left to reconstruct from.

    Raises:
        InputError: fewer than three sequences.
    """
    check_enough(calibration, 3, "to search with: to fit, to hold out and to judge")
