"""Proposals of the budget search for reconstructed plans: the budget's profile over depth and between the kinds.

The gradient of the masks is not the loss after reconstruction: later modules compensate for earlier ones, so that the
same score matters less in an early layer. Every plan is therefore reconstructed before it is measured, which takes too
long to try layers one by one. Steps change the level, slope or curvature of the log factors over the depth, for either
kind of block; a rejected step is tried in the opposite direction, with a smaller size.

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

#: One of this many sequences measures a plan, which is reconstructed from the others.
MEASURED = 4
#: Kind of step -> the kind of block and the power in ``depth_profile``.
PROFILES = {
    "mlp slope": (MLP, 1),
    "mlp bend": (MLP, 2),
    "kinds": (MLP, 0),
    "attention slope": (ATTENTION, 1),
    "attention bend": (ATTENTION, 2),
}


class ProfileProposals:
    """Measures the divergence of the reconstructed model, and proposes to move budget over depth and between kinds.

    A step costs a reconstruction from three quarters of the text and a forward pass over the last quarter.

    Args:
        decoder: the dense model, in memory or offloaded; it is not changed.
        problem: plans are selected from it.
        calibration: the text; its last quarter measures.
        options: how every plan is reconstructed.
        read: returns a dense tensor by its name; default: the parameters of the model.
        tensors_dir: folder for refitted tensors, removed after every step; None keeps them in memory.

    Raises:
        InputError: fewer than three sequences.
    """

    report_name: ClassVar[str] = "ProfileMoves"  # part of the report's schema
    names: ClassVar[Sequence[str]] = tuple(PROFILES)
    first_step: ClassVar[float] = 0.7
    rejection_factor: ClassVar[float] = -0.6

    def __init__(
        self,
        decoder: Decoder,
        problem: SearchProblem,
        calibration: Calibration,
        options: ReconstructionOptions | None = None,
        *,
        read: Callable[[str], Tensor] | None = None,
        tensors_dir: Path | None = None,
    ) -> None:
        self._decoder, self._problem, self._read = decoder, problem, read
        self._options, self._tensors_dir = options or ReconstructionOptions(), tensors_dir
        check_enough_to_search(calibration)
        num_fit = len(calibration.input_ids) - max(1, len(calibration.input_ids) // MEASURED)
        self._fit = replace(calibration, input_ids=calibration.input_ids[:num_fit])
        self._measured_ids = calibration.input_ids[num_fit:]
        self.fingerprint = f"profile, {self._options.method}, {calibration.sha256}"

    def __enter__(self) -> ProfileProposals:
        self._divergence = DivergenceFromDense(
            self._decoder, self._measured_ids, self._options.batch_size, self._options.spill_dir
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._divergence.close()

    def measure(self, log_factors_LK: Floats, below: float) -> float:
        """Return the divergence of the reconstructed model in nats per token; ``below`` has no effect."""
        plan = plan_for(self._options.method, self._problem.plan(log_factors_LK))
        surgery = Surgery(self._decoder.model, plan, read=self._read)
        with self._refitted_on_disk(plan) as resume:
            fitted = reconstruct(self._decoder, surgery, self._fit, self._options, resume=resume)
            zero_padded = zero_padded_decoder(self._decoder, surgery.replacing(fitted.tensors))
            batch_size, spill_dir = self._options.batch_size, self._options.spill_dir
            with LayerWalk(zero_padded, self._measured_ids, batch_size, spill_dir=spill_dir) as walk:
                return self._divergence.per_token(walk)

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
        """Return the change of the log factors in a step of size 1, [L, 2]."""
        return depth_profile(self._problem.geometry.num_layers, *PROFILES[name])


def check_enough_to_search(calibration: Calibration) -> None:
    """Refuse a calibration with too few sequences to reconstruct a plan and to measure it.

    Raises:
        InputError: fewer than three sequences.
    """
    check_enough(calibration, 3, "to search with: to fit, to hold out and to measure")
