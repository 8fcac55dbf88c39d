"""The stages in order, for the recipes and for Python: score, cut and search, reconstruct, write."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hgsp.console.progress import Progress, Timings, silent
from hgsp.data.calibration import Calibration
from hgsp.layerwise.disk_tensors import DiskTensors
from hgsp.models import checkpoint
from hgsp.models.loaded import LoadedModel
from hgsp.models.loading import inspect_model
from hgsp.models.offload import load_offloaded
from hgsp.pipeline.config import PruneConfig, ScoringConfig
from hgsp.pipeline.decision import PruningDecision, cut, search_decision, surgery_of
from hgsp.pipeline.request import Calibrations, Request, ResumePaths
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.select import kept_mask
from hgsp.pruning.surgery import Surgery, apply_plan
from hgsp.pruning.zero_padded import zero_padded_decoder
from hgsp.reconstruction.reconstruct import Reconstruction, ReconstructionOptions, reconstruct
from hgsp.reconstruction.resume import ResumeState
from hgsp.scoring.score import ScoringOptions
from hgsp.scoring.score_model import score_model
from hgsp.scoring.scores import Scores, weight_sample

LOG = logging.getLogger(__name__)

#: Most bytes of a file of the pruned model when it is written without being in memory whole.
OFFLOAD_SHARD_BYTES = 10**9


@dataclass(frozen=True)
class ReconstructedLayers:
    """Reconstructed layers of the pruned model, in files, and what the reconstruction found."""

    layers: ResumeState
    found: Reconstruction

    @property
    def tensors(self) -> DiskTensors:
        return self.layers.tensors


def score(
    config: ScoringConfig, loaded: LoadedModel, calibration: Calibration | None, progress: Progress = silent
) -> Scores:
    """Score every group by the configured method, and measure the layers' influence if the config asks for it.

    Raises:
        InputError, NumericalError: as ``score_groups``.
    """
    spill_dir = Path(config.spill_dir) if config.spill_dir else None
    return score_model(
        loaded,
        config.importance_method,
        calibration,
        ScoringOptions(config.batch_size, config.use_gradient_checkpointing, spill_dir),
        base_model=config.base_model,
        layer_importance=config.layer_importance if config.measures_influence else None,
        seed=config.seed,
        labels=config.labels,
        progress=progress,
    )


def load_scores(request: Request) -> Scores:
    """Read ``--scores``; whether they are of the very weights is seen when those are open (``check_belongs_to``).

    Raises:
        InputError: no scores file, of a model of other sizes, or without the influence that a temperature needs.
    """
    scores = Scores.read(Path(str(request.config.scores)))
    scores.check_belongs_to(request.geometry, scores.weight_sample, request.config.dtype)
    scores.check_offers(request.config.temperature)
    return scores


def overruled_by(scores: Scores, config: PruneConfig) -> list[str]:
    """Warnings of what was asked of scoring and is settled by ``--scores``; a default was not asked for."""
    made = {**scores.provenance, "layer_importance": None if scores.influence is None else scores.influence.measure}
    names = ["importance_method", "labels"] + ["layer_importance"] * config.measures_influence
    settled = [(name, getattr(config, name), getattr(PruneConfig, name)) for name in names]
    return [
        f"the scores were made with --{name} {made.get(name, default)}: {asked}, which was asked for, changes nothing"
        for name, asked, default in settled
        if asked not in (default, made.get(name, default))
    ]


def prune_in_rounds(
    request: Request,
    loaded: LoadedModel,
    scores: Scores,
    budget: int,
    calibrations: Calibrations,
    folder: Path,
    resume_paths: ResumePaths,
    timings: Timings,
    progress: Progress = silent,
) -> tuple[PruningDecision, ReconstructedLayers | None]:
    """Cut and, if asked for, search and reconstruct; with several rounds, a part of the budget at a time.

    Every round starts from the dense model: it is scored as the last round left it, cut down to this round's share of
    the budget, and reconstructed. One round is the plain cut. The last one's plan is what the search starts from.

    Raises:
        InputError, NumericalError: as ``score_groups`` and ``reconstruct``.
    """
    earlier, rounds = None, request.config.rounds
    made = scores.provenance
    config = replace(
        request.config, importance_method=made["importance_method"], labels=made.get("labels", request.config.labels)
    )
    for number in range(1, rounds + 1):
        with timings.stage("cut"):
            decision = cut(request, scores, budget * number // rounds, earlier)
        if number == rounds and calibrations.search_text is not None:
            with timings.stage("search"):
                decision = search_decision(
                    request, loaded, decision, calibrations.search_text, folder, resume_paths.search, progress
                )
        reconstructed = None
        if calibrations.reconstruction is not None:
            with timings.stage("reconstruct"):
                reconstructed = reconstruct_writers(
                    request,
                    loaded,
                    decision.plan,
                    calibrations.reconstruction,
                    folder,
                    resume_paths.reconstruction,
                    progress,
                )
        if number == rounds:
            break
        with timings.stage("score"):
            surgery = surgery_of(loaded, decision.plan, None if reconstructed is None else reconstructed.tensors)
            left = replace(loaded, decoder=zero_padded_decoder(loaded.decoder, surgery))
            scores, earlier = score(config, left, calibrations.scoring, progress), decision.plan
        if reconstructed is not None:
            reconstructed.layers.close()
    return decision, reconstructed


def reconstruct_writers(
    request: Request,
    loaded: LoadedModel,
    plan: PrunePlan,
    calibration: Calibration,
    folder: Path,
    state_folder: Path,
    progress: Progress = silent,
) -> ReconstructedLayers:
    """Refit the writers of the pruned model that the plan makes; the dense one is only read.

    The new weights are kept in ``state_folder`` layer by layer, where an interrupted reconstruction goes on; with
    ``--offload`` the two residual streams lie in ``folder``, unless ``--spill_dir`` names another one.

    Raises:
        InputError, NumericalError: as ``reconstruct``.
    """
    layers = ResumeState(state_folder, _fingerprint(request, loaded, plan, calibration))
    found = reconstruct(
        loaded.decoder,
        surgery_of(loaded, plan),
        calibration,
        ReconstructionOptions(
            request.config.reconstruct,
            request.config.batch_size,
            request.streams_dir(folder),
            request.frozen_layers,
        ),
        resume=layers,
        progress=progress,
    )
    return ReconstructedLayers(layers, found)


def _fingerprint(request: Request, loaded: LoadedModel, plan: PrunePlan, calibration: Calibration) -> str:
    """Of everything that reconstructed weights depend on."""
    config = request.config
    kept = [asdict(keep) for keep in plan.layers]
    asked = [config.reconstruct, config.batch_size, sorted(request.frozen_layers), config.dtype]
    text = json.dumps([kept, asked, calibration.sha256, calibration.seed])
    return hashlib.sha256(text.encode() + weight_sample(loaded).tobytes()).hexdigest()


def write_result(
    request: Request,
    loaded: LoadedModel,
    decision: PruningDecision,
    scores: Scores,
    tokenizer: Any,
    folder: Path,
    reconstructed: ReconstructedLayers | None = None,
) -> Any:
    """Surgery and saving: checkpoint, plan, group table and scores. Returns the pruned model for evaluation.

    A resident dense model is consumed. With ``--offload`` the checkpoint goes from file to file, and the model that is
    returned reads its layers from the new files.
    """
    with_bin = not request.config.no_bin
    if loaded.files is None:
        pruned = apply_plan(loaded.model, decision.plan, None if reconstructed is None else reconstructed.tensors)
        checkpoint.save_pruned(pruned, tokenizer, folder, with_bin=with_bin)
    else:
        surgery = surgery_of(loaded, decision.plan, None if reconstructed is None else reconstructed.tensors)
        _write_streamed(surgery, loaded.model.generation_config, tokenizer, folder, with_bin)
        pruned = load_offloaded(inspect_model(str(folder)), request.config.dtype, request.device)[0].model
    decision.plan.write_json(folder / "prune_plan.json")
    decision.table.write_csv(folder / "global_group_table.csv", kept_mask(decision.table, decision.plan))
    scores.write(folder / "scores.npz")
    return pruned


def _write_streamed(surgery: Surgery, generation_config: Any, tokenizer: Any, folder: Path, with_bin: bool) -> None:
    """One shard of the pruned model is all that is in memory beside embeddings and head."""
    checkpoint.save_streamed(
        surgery.skeleton, surgery.tensor, tokenizer, folder, generation_config, OFFLOAD_SHARD_BYTES
    )
    if with_bin:
        checkpoint.save_bin_streamed(surgery.skeleton, surgery.tensor, folder)
