"""Proposals of the budget search for reconstructed plans: the budget's profile over depth and between the kinds.

The gradient of the masks is not the loss after reconstruction: later modules compensate for earlier ones, so that the
same score matters less in an early layer. Every plan is therefore reconstructed before it is measured, which takes too
long to try layers one by one. Steps change the level, slope or curvature of the log factors over the depth, for either
kind of block; a rejected step is tried in the opposite direction, with a smaller size.

L layers
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from hgsp.data.calibration import Calibration
from hgsp.models.decoder import Decoder
from hgsp.reconstruction.reconstruct import ReconstructionOptions
from hgsp.scoring.groups import ATTENTION, MLP, Floats, depth_profile
from hgsp.search.reconstructed import ReconstructedDivergence
from hgsp.search.search import SearchProblem

#: Kind of step -> the kind of block and the power in ``depth_profile``; those that helped most come first.
PROFILES = {
    "attention slope": (ATTENTION, 1),
    "attention bend": (ATTENTION, 2),
    "mlp bend": (MLP, 2),
    "mlp slope": (MLP, 1),
    "kinds": (MLP, 0),
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
        self._problem = problem
        self._divergence = ReconstructedDivergence(
            decoder, calibration, options or ReconstructionOptions(), read=read, tensors_dir=tensors_dir
        )
        self.fingerprint = self._divergence.fingerprint

    def __enter__(self) -> ProfileProposals:
        self._divergence.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._divergence.__exit__()

    def measure(self, log_factors_LK: Floats, below: float) -> float:
        """Return the divergence of the reconstructed model in nats per token; ``below`` has no effect."""
        return self._divergence.of(self._problem.plan(log_factors_LK))

    def direction(self, name: str) -> Floats:
        """Return the change of the log factors in a step of size 1, [L, 2]."""
        return depth_profile(self._problem.geometry.num_layers, *PROFILES[name])
