"""The stages in order, for the recipes and for Python: prepare, open, calibrate, score, cut, write."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hgsp import checkpoint
from hgsp.as_cut import decoder_as_cut
from hgsp.calibration import Calibration, build_calibration
from hgsp.config import DEFAULT_RECONSTRUCT_NSAMPLES, PruneConfig, ScoringConfig
from hgsp.data import Text
from hgsp.devices import resolve_device
from hgsp.distributed import join_processes
from hgsp.errors import InputError
from hgsp.geometry import Geometry, geometry_of
from hgsp.groups import GroupTable
from hgsp.importance import METHODS
from hgsp.layerwise import Decoder
from hgsp.loading import DTYPES, ModelSource, inspect_model, load_dense
from hgsp.offload import SafetensorFiles, open_offloaded
from hgsp.prior import perplexity_influence
from hgsp.progress import Progress, Timings, silent
from hgsp.reconstruct import Reconstruction, SpilledTensors, check_enough, reconstruct
from hgsp.scores import Scores, sample_weights
from hgsp.scoring import ScoringOptions, score_groups
from hgsp.selection import Floors, PrunePlan, budget_for_ratio, kept_mask, select_groups
from hgsp.surgery import Surgery, apply_plan

LOG = logging.getLogger(__name__)

#: Boundary activations of a model on the CPU stay in memory up to this size, or up to an eighth of its weights.
MAX_RESIDENT_BOUNDARY_BYTES = 2**31
#: Most bytes of a file of the pruned model when it is written without being in memory whole.
OFFLOAD_SHARD_BYTES = 10**9


@dataclass(frozen=True)
class Request:
    """A configuration that has been checked against the model it names; nothing is loaded yet."""

    config: PruneConfig
    source: ModelSource
    device: str
    floors: Floors
    budgets: tuple[int, ...]  # parameters to remove, one per ratio

    @property
    def geometry(self) -> Geometry:
        return self.source.geometry

    def folder(self, ratio: float) -> Path:
        return Path(self.config.results_dir) / self.config.output_name_for(ratio)


@dataclass
class OpenModel:
    """A dense model ready to be walked; ``files`` where its layers are read from disk when needed."""

    decoder: Decoder
    files: SafetensorFiles | None

    @property
    def model(self) -> Any:
        return self.decoder.model


@dataclass(frozen=True)
class Cut:
    """One decision about a model: the scored table, the plan, and each layer's H-GSP mode."""

    table: GroupTable
    plan: PrunePlan
    modes: tuple[str, ...]


@dataclass(frozen=True)
class Rebuilt:
    """Reconstructed weights of the pruned model, in files, and what the reconstruction found."""

    tensors: SpilledTensors
    found: Reconstruction


def prepare(config: PruneConfig) -> Request:
    """Check the request against the model's config: every refusal that can come early comes here.

    Raises:
        InputError: unprunable model, unknown device, ratio out of reach, too many frozen layers, existing results.
    """
    device = resolve_device(config.device)
    if not config.dry_run:
        for ratio in config.pruning_ratio:
            target = Path(config.results_dir) / config.output_name_for(ratio)
            checkpoint.refuse_existing(target, config.overwrite)
    source = inspect_model(config.base_model)
    frozen = config.freeze_first_n_layers + config.freeze_last_n_layers
    if frozen > source.geometry.num_layers:
        raise InputError(
            expected=f"at most {source.geometry.num_layers} frozen layers", got=str(frozen), remedy="freeze fewer"
        )
    floors = Floors(
        config.min_kv_groups, config.min_mlp_width, config.freeze_first_n_layers, config.freeze_last_n_layers
    )
    budgets = tuple(budget_for_ratio(source.geometry, ratio, floors) for ratio in config.pruning_ratio)
    return Request(config, source, device, floors, budgets)


def open_model(config: ScoringConfig, source: ModelSource, device: str) -> OpenModel:
    """Load the dense model, or open its files with ``--offload``. Joins other processes if a launcher started them."""
    join_processes(torch.device("cpu" if device == "auto" else device))
    if config.offload:
        return OpenModel(*open_offloaded(source, config.dtype, device))
    return OpenModel(Decoder(load_dense(source, config.dtype, device)), None)


def score(
    config: ScoringConfig, opened: OpenModel, calibration: Calibration | None, progress: Progress = silent
) -> Scores:
    """Score every group by the configured method, and measure the layers' influence if the config asks for it.

    Raises:
        InputError, NumericalError: as ``score_groups``.
    """
    by_cosine = config.measures_influence and config.layer_importance == "cosine"
    spill_dir = Path(config.spill_dir) if config.spill_dir else None
    if spill_dir is None and calibration is not None and _boundaries_crowd_memory(opened.model, calibration):
        spill_dir = Path(tempfile.gettempdir())
        LOG.info("layer-boundary activations go to %s (--spill_dir chooses another folder)", spill_dir)
    options = ScoringOptions(config.batch_size, config.use_gradient_checkpointing, spill_dir)
    found = score_groups(
        opened.decoder,
        METHODS[config.importance_method],
        calibration,
        with_influence=by_cosine,
        options=options,
        seed=config.seed,
        progress=progress,
    )
    influence = found.influence
    if config.measures_influence and not by_cosine and calibration is not None:
        influence = perplexity_influence(opened.decoder, calibration.input_ids)
    provenance = {
        "base_model": config.base_model,
        "importance_method": config.importance_method,
        "calibration": None if calibration is None else calibration.describe(),
        "calibration_loss": found.calibration_loss,
        "seed": config.seed,
        "dtype": config.dtype,
    }
    return Scores(found.by_layer, influence, _weight_sample(opened, config.dtype), provenance)


def draw_calibrations(config: PruneConfig, text: Text, tokenizer: Any) -> tuple[Calibration | None, Calibration | None]:
    """What scoring and what the reconstruction read of the same text; None for one that reads nothing.

    Raises:
        InputError: the text is too short to score with, or has fewer than two sequences to reconstruct from.
    """
    scoring = rebuilding = None
    if config.scores_text:
        scoring = build_calibration(text, tokenizer, config.nsamples, config.seq_len, config.seed)
        LOG.info("calibration: %s", scoring.describe())
    if config.reconstruct != "none":
        wanted = config.reconstruct_nsamples or DEFAULT_RECONSTRUCT_NSAMPLES
        rebuilding = build_calibration(text, tokenizer, wanted, config.seq_len, config.seed, at_most=True)
        check_enough(rebuilding)
        LOG.info("reconstruction (%d sequences wanted): %s", wanted, rebuilding.describe())
    return scoring, rebuilding


def load_scores(request: Request, opened: OpenModel | None) -> Scores:
    """Read ``--scores`` and, when the model is open, make sure they are its own."""
    scores = Scores.read(Path(str(request.config.scores)))
    dtype = request.config.dtype
    sample = scores.weight_sample if opened is None else _weight_sample(opened, dtype)
    scores.check_belongs_to(request.geometry, sample, dtype)
    return scores


def cut(request: Request, scores: Scores, budget: int, earlier: PrunePlan | None = None) -> Cut:
    """Rank all groups and spend the budget. Seconds; needs no weights.

    What an ``earlier`` round dropped is worth nothing now, whatever a normalisation makes of its importance of 0.
    """
    config = request.config
    method = METHODS[scores.provenance["importance_method"]]
    normalization = method.normalization if config.score_normalization == "auto" else config.score_normalization
    table, modes = scores.table(request.geometry, normalization, config.temperature, config.tau)
    if earlier is not None:
        table = table.worthless_unless(kept_mask(table, earlier))
    provenance = {
        **scores.provenance,
        "score_normalization": normalization,
        "temperature": config.temperature,
        "tau": "inf" if config.tau == math.inf else config.tau,  # JSON has no infinity
        "epsilon": config.collapse_epsilon,
        "rounds": config.rounds,
    }
    plan = select_groups(table, request.geometry, budget, request.floors, config.collapse_epsilon, provenance)
    return Cut(table, plan, tuple(modes))


def cut_in_rounds(
    request: Request,
    opened: OpenModel,
    scores: Scores,
    budget: int,
    calibrations: tuple[Calibration | None, Calibration | None],
    folder: Path,
    timings: Timings,
    progress: Progress = silent,
) -> tuple[Cut, Rebuilt | None]:
    """Cut and, if asked for, reconstruct; with several rounds, a part of the budget at a time.

    Every round starts from the dense model: it is scored as the last round left it, cut down to this round's share of
    the budget, and reconstructed. One round is the plain cut. ``calibrations`` are those of ``draw_calibrations``.

    Raises:
        InputError, NumericalError: as ``score_groups`` and ``reconstruct``.
    """
    scoring, rebuilding = calibrations
    earlier, rounds = None, request.config.rounds
    config = replace(request.config, importance_method=scores.provenance["importance_method"])
    for number in range(1, rounds + 1):
        with timings.stage("cut"):
            decision = cut(request, scores, budget * number // rounds, earlier)
        rebuilt = None
        if rebuilding is not None:
            with timings.stage("reconstruct"):
                rebuilt = reconstruct_writers(request, opened, decision.plan, rebuilding, folder, progress)
        if number == rounds:
            break
        with timings.stage("score"):
            surgery = _surgery(request, opened, decision.plan, rebuilt)
            left = OpenModel(decoder_as_cut(opened.decoder, surgery), opened.files)
            scores, earlier = score(config, left, scoring, progress), decision.plan
        if rebuilt is not None:
            rebuilt.tensors.close()
    return decision, rebuilt


def _surgery(request: Request, opened: OpenModel, plan: PrunePlan, rebuilt: Rebuilt | None) -> Surgery:
    replaced = None if rebuilt is None else rebuilt.tensors
    reader = _reader(opened, request.config.dtype)
    return Surgery(opened.model.config, geometry_of(opened.model), plan, reader, replaced)


def result_folder(request: Request, ratio: float) -> AbstractContextManager[Path]:
    """A folder to fill that becomes ``results/{output_name}`` when the block ends well, and vanishes otherwise."""
    return checkpoint.new_folder(request.folder(ratio), request.config.overwrite)


def reconstruct_writers(
    request: Request,
    opened: OpenModel,
    plan: PrunePlan,
    calibration: Calibration,
    folder: Path,
    progress: Progress = silent,
) -> Rebuilt:
    """Refit the writers of the pruned model that the plan makes; the dense one is only read.

    The new weights wait in files below ``folder`` until ``write_result`` has written them; with ``--offload`` the two
    residual streams lie there too, unless ``--spill_dir`` names another folder.

    Raises:
        InputError, NumericalError: as ``reconstruct``.
    """
    config, num_layers = request.config, request.geometry.num_layers
    tensors = SpilledTensors(folder / ".reconstructed")
    surgery = Surgery(opened.model.config, geometry_of(opened.model), plan, _reader(opened, config.dtype), tensors)
    found = reconstruct(
        opened.decoder,
        surgery,
        calibration,
        batch_size=config.batch_size,
        spill_dir=Path(config.spill_dir) if config.spill_dir else folder if config.offload else None,
        frozen={*range(config.freeze_first_n_layers), *range(num_layers - config.freeze_last_n_layers, num_layers)},
        progress=progress,
    )
    return Rebuilt(tensors, found)


def write_result(
    request: Request,
    opened: OpenModel,
    decision: Cut,
    scores: Scores,
    tokenizer: Any,
    folder: Path,
    rebuilt: Rebuilt | None = None,
) -> Any:
    """Surgery and saving: checkpoint, plan, group table and scores. Returns the pruned model for evaluation.

    A resident dense model is consumed. With ``--offload`` the checkpoint goes from file to file, and the model that is
    returned reads its layers from the new files.
    """
    with_bin = not request.config.no_bin
    if opened.files is None:
        pruned = apply_plan(opened.model, decision.plan, None if rebuilt is None else rebuilt.tensors)
        checkpoint.save_pruned(pruned, tokenizer, folder, with_bin=with_bin)
    else:
        surgery = _surgery(request, opened, decision.plan, rebuilt)
        _write_streamed(surgery, opened.model.generation_config, tokenizer, folder, with_bin)
        pruned = open_offloaded(inspect_model(str(folder)), request.config.dtype, request.device)[0].model
    if rebuilt is not None:
        rebuilt.tensors.close()
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


def _reader(opened: OpenModel, dtype: str) -> Callable[[str], torch.Tensor]:
    """Gives tensors of the dense model by name, from memory or from its files."""
    files, model = opened.files, opened.model
    if files is None:
        return lambda name: model.get_parameter(name).detach()
    return lambda name: files.read(name).to(DTYPES[dtype])


def _boundaries_crowd_memory(model: Any, calibration: Calibration) -> bool:
    """Whether the activations between all layers would take a notable share of a CPU model's memory.

    A model on a GPU keeps them in main memory, where they do not compete with its weights.
    """
    embedding = model.model.embed_tokens.weight
    boundaries = calibration.input_ids.numel() * embedding.shape[1] * (len(model.model.layers) + 1)
    weights = sum(parameter.numel() for parameter in model.parameters())
    num_bytes = boundaries * embedding.element_size()
    return embedding.device.type == "cpu" and num_bytes > MAX_RESIDENT_BOUNDARY_BYTES and boundaries > weights / 8


def _weight_sample(opened: OpenModel, dtype: str) -> Any:
    """First weights of every Linear, rounded to the dtype they are used in wherever they are read from."""
    state = opened.model.state_dict()

    def read(name: str) -> torch.Tensor:
        rows = state[name][:1] if opened.files is None else opened.files.read_first_row(name)
        return rows.to(DTYPES[dtype])

    return sample_weights(read, opened.decoder.num_layers)
