"""Write the result folder: checkpoint, plan, group table and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hgsp.models import checkpoint
from hgsp.models.loaded import LoadedModel
from hgsp.models.loading import inspect_model
from hgsp.models.offload import load_offloaded
from hgsp.pipeline.request import Request
from hgsp.pipeline.stages import Pruning
from hgsp.pruning.select import kept_mask
from hgsp.pruning.surgery import Surgery, apply_plan
from hgsp.scoring.scores import Scores

#: Most bytes per file of a pruned model that is written without being in memory whole.
OFFLOAD_SHARD_BYTES = 10**9


def write_result(
    request: Request, dense: LoadedModel, pruning: Pruning, scores: Scores, tokenizer: Any, folder: Path
) -> Any:
    """Prune the weights and save everything; returns the pruned model for evaluation.

    A dense model in memory is consumed. With ``--offload`` tensors go from file to file, and the model that is returned
    reads its layers from the new files.
    """
    with_bin = not request.config.no_bin
    plan = pruning.decision.plan
    replaced = None if pruning.reconstruction is None else pruning.reconstruction.tensors
    if dense.files is None:
        pruned = apply_plan(dense.model, plan, replaced)
        checkpoint.save_pruned(pruned, tokenizer, folder, with_bin=with_bin)
    else:
        surgery = Surgery(dense.model, plan, read=dense.read, replaced=replaced)
        _write_streamed(surgery, dense.model.generation_config, tokenizer, folder, with_bin=with_bin)
        pruned = load_offloaded(inspect_model(str(folder)), request.config.dtype, request.device)[0].model
    plan.write_json(folder / "prune_plan.json")
    table = pruning.decision.table
    table.write_csv(folder / "global_group_table.csv", kept_mask(table, plan))
    scores.write(folder / "scores.npz")
    return pruned


def _write_streamed(surgery: Surgery, generation_config: Any, tokenizer: Any, folder: Path, *, with_bin: bool) -> None:
    """Save with no more than one shard of the pruned model in memory beside embeddings and head."""
    checkpoint.save_streamed(
        surgery.skeleton, surgery.tensor, tokenizer, folder, generation_config, OFFLOAD_SHARD_BYTES
    )
    if with_bin:
        checkpoint.save_bin_streamed(surgery.skeleton, surgery.tensor, folder)
