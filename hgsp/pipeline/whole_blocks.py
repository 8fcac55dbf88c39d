"""The stage that empties whole blocks: plans with different numbers of them are refitted and judged on text."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.models.geometry import geometry_of
from hgsp.models.loaded import LoadedModel
from hgsp.pipeline.decision import PruningDecision, SelectionOptions, select_within
from hgsp.pipeline.recipes import DEFAULT_PROFILE_NSAMPLES, Recipe
from hgsp.pruning.plan import PrunePlan
from hgsp.reconstruction.reconstruct import plan_for
from hgsp.search.reconstructed import ReconstructedDivergence, quick_reconstruction
from hgsp.search.whole_blocks import BlockId, block_importance, emptying_order, search_whole_blocks

#: Of all parameters; a plan that misses a ratio by more has too few blocks emptied.
TOLERANCE = 0.01


def empty_whole_blocks(
    dense: LoadedModel,
    decision: PruningDecision,
    selection: SelectionOptions,
    recipe: Recipe,
    calibration: Calibration,
    batch_size: int = 4,
    spill_dir: Path | None = None,
    scratch: Path | None = None,
) -> tuple[PruningDecision, SelectionOptions]:
    """Return the decision with the best number of emptied blocks, and the selection that makes it.

    Candidates keep to the budget by width alone, are refitted on three quarters of the first sequences, and are
    measured on the others.

    Args:
        spill_dir, scratch: folders for hidden states and for refitted tensors; None is memory and the system's folder.

    Raises:
        InputError: too few sequences.
        NumericalError: a divergence is not finite.
    """
    geometry = geometry_of(dense.model).with_expert_channels(recipe.expert_channels)
    rules = replace(selection.shape_rules, allow_empty_blocks=False)

    def emptying(blocks: frozenset[BlockId]) -> SelectionOptions:
        return replace(selection, shape_rules=rules, emptied=blocks)

    def select(blocks: frozenset[BlockId]) -> PrunePlan:
        plan = select_within(
            decision.table, geometry, emptying(blocks), recipe.collapse_epsilon, decision.plan.provenance
        )
        if plan.budget_params - plan.removed_params > TOLERANCE * geometry.total_params:
            raise InputError(
                expected=f"a plan that removes {plan.budget_params} parameters",
                got=plan.removed_params,
                remedy="empty more blocks",
            )
        return plan

    importance_LK = block_importance(decision.table, selection.group_costs)
    frozen = rules.frozen_layers(geometry.num_layers)
    options = quick_reconstruction(recipe.reconstruct, batch_size, spill_dir, frozen)
    order = emptying_order(importance_LK, selection.costs_of_blocks(geometry), frozen)
    judged = replace(calibration, input_ids=calibration.input_ids[:DEFAULT_PROFILE_NSAMPLES])
    with (
        tempfile.TemporaryDirectory(dir=scratch, prefix=".whole-blocks-") as tensors_dir,
        ReconstructedDivergence(
            dense.decoder, judged, options, read=dense.read, tensors_dir=Path(tensors_dir)
        ) as divergence,
    ):
        found = search_whole_blocks(order, select, divergence.of)
    plan = plan_for(recipe.reconstruct, found.plan)
    return replace(decision, plan=plan, whole_blocks=found.describe()), emptying(frozenset(found.emptied))
