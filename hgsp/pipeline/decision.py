"""What leaves the model: one ranking under one budget, and the budget search around it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hgsp.console.progress import Progress, silent
from hgsp.data.calibration import Calibration
from hgsp.models.geometry import geometry_of
from hgsp.models.loaded import LoadedModel
from hgsp.pipeline.request import Request
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import kept_mask, select_groups
from hgsp.pruning.surgery import Surgery
from hgsp.reconstruction.reconstruct import ReconstructionOptions, plan_for
from hgsp.scoring.groups import GroupTable
from hgsp.scoring.scores import RankingOptions, Scores
from hgsp.search.by_gradient import GradientProposals
from hgsp.search.by_profile import ProfileProposals
from hgsp.search.search import Proposals, SearchProblem, search

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PruningDecision:
    """One decision about a model: the scored table, the plan, each layer's H-GSP mode, and what a search found."""

    table: GroupTable
    plan: PrunePlan
    modes: tuple[str, ...]
    searched: Mapping[str, Any] | None = None


def cut(request: Request, scores: Scores, budget: int, earlier: PrunePlan | None = None) -> PruningDecision:
    """Rank all groups and spend the budget. Seconds; needs no weights.

    What an ``earlier`` round dropped is worth nothing now, whatever a normalisation makes of its importance of 0.
    """
    config = request.config
    ranking = RankingOptions(config.score_normalization, config.temperature, config.tau, config.depth_slope)
    table, modes = scores.ranked(request.geometry, ranking)
    if earlier is not None:
        table = table.zeroed_unless(kept_mask(table, earlier))
    provenance = {
        **scores.provenance,
        "score_normalization": ranking.normalization_of(scores.method),
        "temperature": config.temperature,
        "tau": "inf" if config.tau == math.inf else config.tau,  # JSON has no infinity
        "epsilon": config.collapse_epsilon,
        "depth_slope": config.depth_slope,
        "rounds": config.rounds,
    }
    plan = select_groups(table, request.geometry, budget, request.minimum_sizes, config.collapse_epsilon, provenance)
    return PruningDecision(table, plan_for(config.reconstruct, plan), modes)


def surgery_of(loaded: LoadedModel, plan: PrunePlan, replaced: Mapping[str, Tensor] | None = None) -> Surgery:
    """Return the tensors of the pruned model, sliced from those of the loaded one; see ``Surgery``."""
    return Surgery(loaded.model, plan, read=loaded.read, replaced=replaced)


def search_allocation(
    request: Request,
    loaded: LoadedModel,
    decision: PruningDecision,
    calibration: Calibration,
    folder: Path,
    state_file: Path,
    progress: Progress = silent,
) -> PruningDecision:
    """The decision with the widths that the budget search found; plans are judged as they will be: with the
    reconstruction that the config asks for. Tensors refitted on the way wait in files below ``folder``.

    Raises:
        InputError, NumericalError: as ``search`` and ``reconstruct``.
    """
    config, plan = request.config, decision.plan
    start = SearchProblem(
        decision.table, geometry_of(loaded.model), plan.budget_params, request.minimum_sizes, config.collapse_epsilon
    )
    with _proposals(request, loaded, start, calibration, folder) as proposals:
        state = search(proposals, start, config.search, state_file=state_file, progress=progress)
    found = {
        "calibration": calibration.describe(),
        "moves": type(proposals).__name__,
        "steps": state.steps,
        "kl_before": state.divergences[0],
        "kl_after": state.least,
        "kl_of_steps": state.divergences[1:],
    }
    LOG.info("budget search: KL(dense || cut) %.4f -> %.4f nats per token", found["kl_before"], found["kl_after"])
    factors_LK = np.array(state.log_factors)
    best = replace(start.plan(factors_LK, plan.provenance), writer_bias=plan.writer_bias)
    return PruningDecision(start.reweighted(factors_LK), best, decision.modes, found)


@contextmanager
def _proposals(
    request: Request, loaded: LoadedModel, start: SearchProblem, calibration: Calibration, folder: Path
) -> Iterator[Proposals]:
    """How the search moves and judges, for a plain cut or for one that is reconstructed."""
    config = request.config
    spill_dir = Path(config.spill_dir) if config.spill_dir else None
    if config.reconstruct == "none":
        yield GradientProposals(loaded.decoder, start, calibration, batch_size=config.batch_size, spill_dir=spill_dir)
        return
    yield ProfileProposals(
        loaded.decoder,
        start,
        calibration,
        ReconstructionOptions(
            "bias" if config.reconstruct == "bias" else "lstsq",
            config.batch_size,
            request.streams_dir(folder),
            request.frozen_layers,
        ),
        read=loaded.read,
        tensors_dir=folder / ".searched",
    )
