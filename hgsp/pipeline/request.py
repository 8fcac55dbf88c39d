"""A request, checked before anything expensive: the model's config, the device, ratios, folders, the text."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgsp.console import result_folders as folders
from hgsp.data.calibration import Calibration, build_calibration
from hgsp.data.texts import Text
from hgsp.errors import InputError
from hgsp.models.devices import resolve_device
from hgsp.models.geometry import Geometry
from hgsp.models.loading import ModelSource, check_positions, inspect_model
from hgsp.models.tokenizers import check_token_ids
from hgsp.pipeline.config import (
    DEFAULT_PROFILE_NSAMPLES,
    DEFAULT_RECONSTRUCT_NSAMPLES,
    DEFAULT_SEARCH_NSAMPLES,
    PruneConfig,
)
from hgsp.pruning.select import MinimumSizes, budget_for_ratio
from hgsp.reconstruction.reconstruct import check_enough
from hgsp.search.by_profile import check_enough_to_search

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A configuration that has been checked against the model it names; nothing is loaded yet."""

    config: PruneConfig
    source: ModelSource
    device: str
    minimum_sizes: MinimumSizes
    budgets: tuple[int, ...]  # parameters to remove, one per ratio

    @property
    def geometry(self) -> Geometry:
        return self.source.geometry

    @property
    def frozen_layers(self) -> frozenset[int]:
        """Indices of the layers that are never touched."""
        num_layers, last = self.geometry.num_layers, self.minimum_sizes.freeze_last
        return frozenset({*range(self.minimum_sizes.freeze_first), *range(num_layers - last, num_layers)})

    def streams_dir(self, folder: Path) -> Path | None:
        """Where the residual streams of a reconstruction lie: in the unfinished result's folder if not in memory."""
        if self.config.spill_dir:
            return Path(self.config.spill_dir)
        return folder if self.config.offload else None

    def folder(self, ratio: float) -> Path:
        return Path(self.config.results_dir) / self.config.output_name_for(ratio)


@dataclass(frozen=True)
class Calibrations:
    """What the steps of pruning read of one text; None for a step that reads nothing."""

    scoring: Calibration | None = None
    search_text: Calibration | None = None
    reconstruction: Calibration | None = None


def prepare(config: PruneConfig) -> Request:
    """Check the request against the model's config: every refusal that can come early comes here.

    Raises:
        InputError: unprunable model, unknown device, ratio out of reach, too many frozen layers, existing results,
            sequences longer than the model's positions.
    """
    device = resolve_device(config.device)
    if not config.dry_run:
        for ratio in config.pruning_ratio:
            target = Path(config.results_dir) / config.output_name_for(ratio)
            folders.check_target(target, config.overwrite, "--results_dir or --output_name", _read_by(config))
        if config.spill_dir:
            folders.refuse_unwritable(Path(config.spill_dir), "--spill_dir")
    source = inspect_model(config.base_model, config.dtype)
    if config.reads_text:
        check_positions(source.config, "--seq_len", config.seq_len)
    if config.evaluation_texts:
        check_positions(source.config, "--eval_seq_len", config.eval_seq_len)
    frozen = config.freeze_first_n_layers + config.freeze_last_n_layers
    if frozen > source.geometry.num_layers:
        raise InputError(
            expected=f"at most {source.geometry.num_layers} frozen layers", got=str(frozen), remedy="freeze fewer"
        )
    minimum_sizes = MinimumSizes(
        config.min_kv_groups, config.min_mlp_width, config.freeze_first_n_layers, config.freeze_last_n_layers
    )
    budgets = tuple(budget_for_ratio(source.geometry, ratio, minimum_sizes) for ratio in config.pruning_ratio)
    return Request(config, source, device, minimum_sizes, budgets)


def _read_by(config: PruneConfig) -> tuple[str | None, ...]:
    """Names of all that a run reads, where it is on this machine."""
    return (config.base_model, config.scores, config.data_dir, config.finetune_data_path) + (
        config.datasets + config.evaluation_texts
    )


def draw_calibrations(config: PruneConfig, texts: Sequence[Text], tokenizer: Any, num_embeddings: int) -> Calibrations:
    """What scoring, the budget search and the reconstruction read of the same texts.

    Raises:
        InputError: a text is too short to score with, has fewer than two sequences to reconstruct from, or has a token
            that none of the model's ``num_embeddings`` embeddings is for.
    """
    scoring = search_text = reconstruction = None
    if config.scores_text:
        scoring = build_calibration(texts, tokenizer, config.nsamples, config.seq_len, config.seed)
        LOG.info("calibration: %s", scoring.describe())
    if config.search:
        reconstructs = config.reconstruct != "none"
        wanted = config.search_nsamples or (DEFAULT_PROFILE_NSAMPLES if reconstructs else DEFAULT_SEARCH_NSAMPLES)
        search_text = build_calibration(texts, tokenizer, wanted, config.seq_len, config.seed + 1, at_most=True)
        if reconstructs:
            check_enough_to_search(search_text)
        LOG.info("budget search (%d sequences wanted): %s", wanted, search_text.describe())
    if config.reconstruct != "none":
        wanted = config.reconstruct_nsamples or DEFAULT_RECONSTRUCT_NSAMPLES
        reconstruction = build_calibration(texts, tokenizer, wanted, config.seq_len, config.seed, at_most=True)
        check_enough(reconstruction)
        LOG.info("reconstruction (%d sequences wanted): %s", wanted, reconstruction.describe())
    for calibration in filter(None, (scoring, search_text, reconstruction)):
        check_token_ids(int(calibration.input_ids.max()), num_embeddings, tokenizer, calibration.source)
    return Calibrations(scoring, search_text, reconstruction)


def result_folder(request: Request, ratio: float) -> AbstractContextManager[Path]:
    """A folder to fill that becomes ``results/{output_name}`` when the block ends well, and vanishes otherwise."""
    return folders.new_folder(request.folder(ratio), request.config.overwrite)


@dataclass(frozen=True)
class ResumePaths:
    """Where what takes long keeps its state until the result is written: beside it, for its folder is not there yet."""

    search: Path
    reconstruction: Path  # a folder

    def remove(self) -> None:
        self.search.unlink(missing_ok=True)
        shutil.rmtree(self.reconstruction, ignore_errors=True)


def resume_paths(request: Request, ratio: float) -> ResumePaths:
    folder = request.folder(ratio)
    return ResumePaths(
        folder.with_name(f"{folder.name}.search.json"), folder.with_name(f"{folder.name}.reconstruction")
    )
