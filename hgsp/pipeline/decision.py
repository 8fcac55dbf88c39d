"""What leaves the model: one ranking under one budget, and the budget search around it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hgsp.console.progress import Progress, silent
from hgsp.data.calibration import Calibration
from hgsp.models.loaded import LoadedModel
from hgsp.pipeline.request import Request
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import kept_mask, select_groups
from hgsp.pruning.surgery import Surgery
from hgsp.reconstruction.reconstruct import plan_for
from hgsp.scoring.groups import GroupTable
from hgsp.scoring.scores import RankingOptions, Scores
from hgsp.search.allocation import SearchOptions, search_allocation
from hgsp.search.search import SearchProblem


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


def search_decision(
    request: Request,
    loaded: LoadedModel,
    decision: PruningDecision,
    calibration: Calibration,
    folder: Path,
    state_file: Path,
    progress: Progress = silent,
) -> PruningDecision:
    """Return the decision with the widths that the budget search found, see ``search_allocation``.

    Raises:
        InputError, NumericalError: as ``search_allocation``.
    """
    config, plan = request.config, decision.plan
    problem = SearchProblem(
        decision.table,
        request.geometry,
        plan.budget_params,
        request.minimum_sizes,
        config.collapse_epsilon,
        plan.provenance,
    )
    spill_dir = Path(config.spill_dir) if config.spill_dir else None
    if config.reconstruct != "none":
        spill_dir = request.streams_dir(folder)
    options = SearchOptions(config.search, config.reconstruct, config.batch_size, spill_dir)
    allocation = search_allocation(
        loaded,
        problem,
        calibration,
        options,
        tensors_dir=folder / ".searched",
        state_file=state_file,
        progress=progress,
    )
    return PruningDecision(allocation.table, allocation.plan, decision.modes, allocation.found)
