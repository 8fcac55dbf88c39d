"""The budget search as one stage: from a loaded model and a search problem to the best plan found."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hgsp.console.progress import Progress, silent
from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.models.loaded import LoadedModel
from hgsp.pruning.plan import PrunePlan
from hgsp.reconstruction.names import RECONSTRUCTIONS
from hgsp.reconstruction.reconstruct import plan_for
from hgsp.scoring.groups import GroupTable
from hgsp.search.by_gradient import GradientProposals
from hgsp.search.by_profile import ProfileProposals
from hgsp.search.reconstructed import quick_reconstruction
from hgsp.search.search import Proposals, SearchProblem, search

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Args:
        steps: of the whole search, those of an interrupted one included.
        reconstruct: how the plan will be reconstructed, a value of ``--reconstruct``; "none" searches along a gradient.
        batch_size: sequences per call of a layer.
        spill_dir: folder for activations; None keeps them in memory.

    Raises:
        InputError: unknown reconstruction.
    """

    steps: int
    reconstruct: str = "none"
    batch_size: int = 4
    spill_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.reconstruct not in RECONSTRUCTIONS:
            raise InputError(
                expected="a reconstruction that the plan will get",
                got=f"'{self.reconstruct}'",
                remedy=f"use one of {', '.join(RECONSTRUCTIONS)}",
            )


@dataclass(frozen=True)
class Allocation:
    """The best plan of a search, the table it is selected from, and the report's section."""

    table: GroupTable
    plan: PrunePlan
    found: Mapping[str, Any]


def search_allocation(
    loaded: LoadedModel,
    problem: SearchProblem,
    calibration: Calibration,
    options: SearchOptions,
    *,
    tensors_dir: Path | None = None,
    state_file: Path | None = None,
    progress: Progress = silent,
) -> Allocation:
    """Search for the widths per layer and kind with the lowest KL(dense || pruned) at the problem's budget.

    Plans are measured with the reconstruction that they will get, or masked if they will get none.

    Args:
        tensors_dir: folder for the tensors that a step refits; None keeps them in memory.
        state_file: written after every step; a search of the same problem resumes from it.

    Raises:
        InputError: too few sequences to reconstruct a plan and to measure it.
        NumericalError: as ``search`` and ``reconstruct``.
    """
    proposals = _proposals(loaded, problem, calibration, options, tensors_dir)
    state = search(proposals, problem, options.steps, state_file=state_file, progress=progress)
    found = {
        "calibration": calibration.describe(),
        "moves": proposals.report_name,
        "steps": state.steps,
        "kl_before": state.divergences[0],
        "kl_after": state.lowest,
        "kl_of_steps": state.divergences[1:],
    }
    LOG.info("budget search: KL(dense || pruned) %.4f -> %.4f nats per token", found["kl_before"], found["kl_after"])
    factors_LK = np.array(state.log_factors)
    plan = plan_for(options.reconstruct, problem.plan(factors_LK))
    return Allocation(problem.reweighted(factors_LK), plan, found)


def _proposals(
    loaded: LoadedModel,
    problem: SearchProblem,
    calibration: Calibration,
    options: SearchOptions,
    tensors_dir: Path | None,
) -> Proposals:
    batch_size, spill_dir = options.batch_size, options.spill_dir
    if options.reconstruct == "none":
        return GradientProposals(loaded.decoder, problem, calibration, batch_size=batch_size, spill_dir=spill_dir)
    frozen = problem.shape_rules.frozen_layers(problem.geometry.num_layers)
    reconstruction = quick_reconstruction(options.reconstruct, batch_size, spill_dir, frozen)
    return ProfileProposals(
        loaded.decoder, problem, calibration, reconstruction, read=loaded.read, tensors_dir=tensors_dir
    )
