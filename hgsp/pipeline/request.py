"""The checked request: model config, device, ratios and folders are validated before anything expensive."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from hgsp.console import result_folders as folders
from hgsp.console.state_files import check_state, check_state_folder
from hgsp.costs.latency import LatencyTable, Workload
from hgsp.data.texts import dataset_names
from hgsp.environment import device_name, remove_folder
from hgsp.errors import InputError
from hgsp.models.devices import bf16_warnings, resolve_device
from hgsp.models.geometry import Geometry
from hgsp.models.loading import DTYPES, ModelSource, check_positions, inspect_model
from hgsp.pipeline.budgets import budgets_of, cost_per_group, read_profile
from hgsp.pipeline.config import PruneConfig
from hgsp.pipeline.decision import SelectionOptions
from hgsp.pipeline.disk import DiskNeed, disk_need
from hgsp.pipeline.experts import refuse_for_experts, refuse_for_others, warnings_about_experts
from hgsp.pipeline.stages import Resources
from hgsp.pruning.budget import Budget
from hgsp.pruning.shape_rules import ShapeRules
from hgsp.reconstruction.resume import KIND as RECONSTRUCTION_STATE
from hgsp.reconstruction.resume import STATE_FILE
from hgsp.scoring.groups import Floats
from hgsp.search.search import KIND as SEARCH_STATE


@dataclass(frozen=True)
class ResumePaths:
    """Paths of resumable state: a file of the budget search and a folder of the reconstruction."""

    search: Path
    reconstruction: Path

    def remove(self) -> None:
        """Remove the state once the result is complete."""
        self.search.unlink(missing_ok=True)
        remove_folder(self.reconstruction)

    def check(self) -> None:
        """Refuse anything else in their places.

        Raises:
            InputError: a file or folder that is no such state.
        """
        check_state(self.search, SEARCH_STATE)
        check_state_folder(self.reconstruction, STATE_FILE, RECONSTRUCTION_STATE)


def resume_paths_of(folder: Path) -> ResumePaths:
    """Return the paths of resumable state next to a result folder, which exists only once it is complete."""
    return ResumePaths(
        folder.with_name(f"{folder.name}.search.json"), folder.with_name(f"{folder.name}.reconstruction")
    )


@dataclass(frozen=True)
class Request:
    """A configuration that has been checked against the model it names; nothing is loaded yet."""

    config: PruneConfig
    source: ModelSource
    device: str
    shape_rules: ShapeRules
    budgets: tuple[Budget, ...]  # one per ratio
    disk: DiskNeed
    group_costs: Floats | None = None  # of one group in the unit of the ranking, [L, 2]; None for parameters
    profile: tuple[LatencyTable, Workload] | None = None

    @property
    def geometry(self) -> Geometry:
        return self.source.geometry.with_expert_channels(self.config.expert_channels)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Facts about the request that the user should know."""
        config, found = self.config, list(self.source.warnings)
        if config.uniform and config.search:
            found.append("no budget search: --uniform leaves it nothing to choose")
        if self.geometry.experts_per_token:
            found += warnings_about_experts(config)
        found += bf16_warnings(self.device, config.dtype)
        if self.profile is not None:
            found += self.profile[0].warnings(device_name(self.device), config.dtype)
        return tuple(found)

    def selection(self, budget: Budget) -> SelectionOptions:
        """Return how to select a plan within one of the budgets."""
        blocks = None
        if self.profile is not None and self.config.ranking_cost == "latency":
            table, workload = self.profile
            blocks = table.block_seconds(self.geometry.shapes, workload)
        return SelectionOptions(budget, self.shape_rules, self.config.ranking_cost, self.group_costs, blocks)

    def folder(self, ratio: float | None) -> Path:
        """Return the result folder of a ratio."""
        return Path(self.config.results_dir) / self.config.output_name_for(ratio)

    def resume_paths(self, ratio: float | None) -> ResumePaths:
        """Return the paths of resumable state."""
        return resume_paths_of(self.folder(ratio))

    def resources(self, ratio: float | None = None, folder: Path | None = None) -> Resources:
        """Return where and how to compute; a folder is scratch space, and adds the paths of the state of its ratio."""
        config = self.config
        spill_dir = Path(config.spill_dir) if config.spill_dir else None
        resources = Resources(config.batch_size, config.use_gradient_checkpointing, spill_dir)
        if folder is None:
            return resources
        paths = self.resume_paths(ratio)
        return replace(
            resources,
            streams_dir=spill_dir or (folder if config.offload else None),
            scratch=folder,
            search_state=paths.search,
            reconstruction_state=paths.reconstruction,
        )


def prepare(config: PruneConfig) -> Request:
    """Check the request against the model's config, so that bad requests fail early.

    Raises:
        InputError: unprunable model, unknown device, ratio out of reach, too many frozen layers, existing results,
            sequences longer than the model's positions, a disk too small for the results.
    """
    device = resolve_device(config.device)
    if not config.dry_run:
        for ratio in config.ratios:
            target = Path(config.results_dir) / config.output_name_for(ratio)
            folders.check_target(target, config.overwrite, "--results_dir or --output_name", _read_by(config))
            resume_paths_of(target).check()
        if config.spill_dir:
            folders.refuse_unwritable(Path(config.spill_dir), "--spill_dir")
    source = inspect_model(config.base_model, config.dtype, dequantize=config.dequantize)
    if config.reads_text:
        check_positions(source.config, "--seq_len", config.seq_len)
    if config.evaluation_texts:
        check_positions(source.config, "--eval_seq_len", config.eval_seq_len)
    frozen = config.freeze_first_n_layers + config.freeze_last_n_layers
    if frozen > source.geometry.num_layers:
        raise InputError(
            expected=f"at most {source.geometry.num_layers} frozen layers", got=str(frozen), remedy="freeze fewer"
        )
    shape_rules = ShapeRules(**config.shape_settings)
    geometry = source.geometry.with_expert_channels(config.expert_channels)
    shape_rules.check_equal_layers(geometry)
    if geometry.experts_per_token:
        refuse_for_experts(config)
    else:
        refuse_for_others(config)
    profile = read_profile(config, geometry)
    budgets = budgets_of(config, geometry, shape_rules, config.dtype, profile)
    max_positions = getattr(source.config, "max_position_embeddings", None)
    group_costs = cost_per_group(config, geometry, config.dtype, profile, max_positions)
    disk = disk_need(
        geometry,
        budgets,
        DTYPES[config.dtype].itemsize,
        Path(config.results_dir),
        with_bin=not config.no_bin,
        recovers=config.finetune,
        reconstruct=config.recipe.reconstruct,
    )
    if not config.dry_run:
        disk.check(Path(config.results_dir), "--results_dir")
    return Request(config, source, device, shape_rules, budgets, disk, group_costs, profile)


def _read_by(config: PruneConfig) -> tuple[str | None, ...]:
    """Return the names of everything that a run reads, local or not."""
    texts = (*config.datasets, *config.evaluation_texts, *dataset_names(config.finetune_data_path))
    return (config.base_model, config.scores, config.data_dir, *texts)


def result_folder(request: Request, ratio: float | None) -> AbstractContextManager[Path]:
    """Return a context with a folder to fill; it becomes ``results/{output_name}``, or vanishes on failure."""
    return folders.new_folder(request.folder(ratio), request.config.overwrite)
