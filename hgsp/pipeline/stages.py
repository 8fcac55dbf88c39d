"""The stages in order, from a loaded dense model to the plan and the refitted weights of the pruned one.

``prune_in_rounds`` is the one pipeline that the command, the study and the benchmarks run.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from hgsp.console.progress import Progress, Timings, silent
from hgsp.data.calibration import Calibration
from hgsp.environment import remove_folder
from hgsp.models.geometry import geometry_of
from hgsp.models.loaded import LoadedModel
from hgsp.pipeline.calibrations import Calibrations
from hgsp.pipeline.decision import PruningDecision, SelectionOptions, decide, select_within
from hgsp.pipeline.recipes import Recipe
from hgsp.pipeline.whole_blocks import empty_whole_blocks
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.surgery import Surgery
from hgsp.pruning.zero_padded import zero_padded_decoder
from hgsp.reconstruction.reconstruct import (
    Reconstruction,
    ReconstructionOptions,
    plan_for,
    reconstruct,
)
from hgsp.reconstruction.resume import ResumeState
from hgsp.scoring.score import ScoringOptions
from hgsp.scoring.score_model import score_model
from hgsp.scoring.scores import Scores
from hgsp.search.allocation import SearchOptions, search_allocation
from hgsp.search.search import SearchProblem


@dataclass(frozen=True)
class Resources:
    """Where and how a run computes. Nothing here changes a result beyond float rounding.

    ``spill_dir`` takes hidden states of scoring and plain searches, ``streams_dir`` those of reconstructions; None
    keeps them in memory. ``search_state`` (a file) and ``reconstruction_state`` (a folder) let an interrupted run
    resume; ``scratch`` takes tensors refitted during a search, None the system's temporary folder.
    """

    batch_size: int = 4
    checkpointing: bool = False
    spill_dir: Path | None = None
    streams_dir: Path | None = None
    scratch: Path | None = None
    search_state: Path | None = None
    reconstruction_state: Path | None = None


@dataclass(frozen=True)
class Pruning:
    """The decision of the last round and, where the recipe reconstructs, the refitted tensors."""

    decision: PruningDecision
    reconstruction: Reconstruction | None = None


def score(
    dense: LoadedModel,
    recipe: Recipe,
    calibration: Calibration | None,
    resources: Resources,
    *,
    base_model: str,
    seed: int,
    progress: Progress = silent,
) -> Scores:
    """Score every group by the recipe's method, with the influence of layers where the recipe's prior needs it.

    Raises:
        InputError, NumericalError: as ``score_model``.
    """
    return score_model(
        dense,
        recipe.importance_method,
        calibration,
        ScoringOptions(resources.batch_size, resources.checkpointing, resources.spill_dir),
        base_model=base_model,
        layer_importance=recipe.layer_importance if recipe.temperature > 0 else None,
        seed=seed,
        labels=recipe.labels,
        expert_channels=recipe.expert_channels,
        progress=progress,
    )


def prune_in_rounds(
    dense: LoadedModel,
    scores: Scores,
    selection: SelectionOptions,
    recipe: Recipe,
    calibrations: Calibrations,
    resources: Resources,
    timings: Timings | None = None,
    progress: Progress = silent,
) -> Pruning:
    """Select, search and reconstruct as the recipe says; with several rounds, a part of the budget at a time.

    Every round starts from the dense model, scores it as the previous round left it, prunes to this round's share of
    the budget, and reconstructs. The search starts from the plan of the last round. The dense model is not changed.

    Raises:
        InputError, NumericalError: as ``score_groups``, ``search`` and ``reconstruct``.
    """
    timings = Timings() if timings is None else timings
    geometry, earlier = geometry_of(dense.model).with_expert_channels(recipe.expert_channels), None
    for number in range(1, recipe.rounds + 1):
        is_last = number == recipe.rounds
        with timings.stage("cut"):
            decision = decide(scores, geometry, selection, recipe, earlier, (number, recipe.rounds))
        if is_last and selection.shape_rules.allow_empty_blocks and calibrations.reconstruction is not None:
            with timings.stage("whole blocks"):
                places = resources.batch_size, resources.streams_dir, resources.scratch
                decision, selection = empty_whole_blocks(
                    dense, decision, selection, recipe, calibrations.reconstruction, *places
                )
        if is_last and calibrations.search is not None:
            with timings.stage("search"):
                decision = _searched(dense, decision, selection, recipe, calibrations.search, resources, progress)
        reconstruction = None
        if calibrations.reconstruction is not None:
            with timings.stage("reconstruct"):
                reconstruction = _reconstructed(
                    dense, decision.plan, selection, recipe, calibrations.reconstruction, resources, progress
                )
        if is_last:
            break
        with timings.stage("score"):
            remaining = _as_pruned(dense, decision.plan, reconstruction)
            scores = _score_again(remaining, scores, recipe, calibrations.scoring, resources, progress)
            earlier = decision.plan
        if resources.reconstruction_state is not None:  # of this round; the next one has other tensors
            remove_folder(resources.reconstruction_state)
    return Pruning(decision, reconstruction)


def _searched(
    dense: LoadedModel,
    decision: PruningDecision,
    selection: SelectionOptions,
    recipe: Recipe,
    calibration: Calibration,
    resources: Resources,
    progress: Progress,
) -> PruningDecision:
    """Return the decision with the widths that the budget search found."""
    plan, geometry = decision.plan, geometry_of(dense.model).with_expert_channels(recipe.expert_channels)
    problem = SearchProblem(
        decision.table,
        geometry,
        plan.budget_params,
        selection.shape_rules,
        recipe.collapse_epsilon,
        plan.provenance,
        selection.emptied,
        dense.identity.sha256,
    )
    spill_dir = resources.streams_dir if recipe.reconstructs else resources.spill_dir
    options = SearchOptions(recipe.search, recipe.reconstruct, resources.batch_size, spill_dir)
    with tempfile.TemporaryDirectory(dir=resources.scratch, prefix=".search-") as tensors_dir:
        found = search_allocation(
            dense,
            problem,
            calibration,
            options,
            tensors_dir=Path(tensors_dir),
            state_file=resources.search_state,
            progress=progress,
        )
    best = found.plan
    if selection.budget.target is not None:  # the search kept the parameters, on which a target depends only in part
        reaching = select_within(found.table, geometry, selection, recipe.collapse_epsilon, plan.provenance)
        best = plan_for(recipe.reconstruct, reaching)
    return replace(decision, table=found.table, plan=best, searched=found.found)


def _reconstructed(
    dense: LoadedModel,
    plan: PrunePlan,
    selection: SelectionOptions,
    recipe: Recipe,
    calibration: Calibration,
    resources: Resources,
    progress: Progress,
) -> Reconstruction:
    """Refit the remaining weights; with a state folder, tensors of finished layers are kept there on disk."""
    frozen = selection.shape_rules.frozen_layers(dense.decoder.num_layers)
    options = ReconstructionOptions(recipe.reconstruct, resources.batch_size, resources.streams_dir, frozen)
    resume = None
    if resources.reconstruction_state is not None:
        fingerprint = _fingerprint(dense, plan, options, calibration)
        resume = ResumeState(resources.reconstruction_state, fingerprint)
    surgery = Surgery(dense.model, plan, read=dense.read)
    return reconstruct(dense.decoder, surgery, calibration, options, resume=resume, progress=progress)


def _fingerprint(dense: LoadedModel, plan: PrunePlan, options: ReconstructionOptions, calibration: Calibration) -> str:
    """Hash everything that reconstructed weights depend on."""
    kept = [keep.as_json() for keep in plan.layers]
    settings = [options.method, options.batch_size, sorted(options.frozen), dense.dtype]
    text = json.dumps([kept, settings, calibration.sha256, calibration.seed, dense.identity.sha256])
    return hashlib.sha256(text.encode()).hexdigest()


def _as_pruned(dense: LoadedModel, plan: PrunePlan, reconstruction: Reconstruction | None) -> LoadedModel:
    """Return the dense model with what the plan drops zeroed out, to be scored again."""
    replaced = None if reconstruction is None else reconstruction.tensors
    surgery = Surgery(dense.model, plan, read=dense.read, replaced=replaced)
    return replace(dense, decoder=zero_padded_decoder(dense.decoder, surgery))


def _score_again(
    remaining: LoadedModel,
    scores: Scores,
    recipe: Recipe,
    calibration: Calibration | None,
    resources: Resources,
    progress: Progress,
) -> Scores:
    """Score by the method and labels of the first scores, which may come from a file."""
    made = scores.provenance
    recipe = replace(recipe, importance_method=scores.method, labels=made.get("labels", recipe.labels))
    return score(
        remaining,
        recipe,
        calibration,
        resources,
        base_model=made["base_model"],
        seed=made["seed"] if calibration is None else calibration.seed,
        progress=progress,
    )
