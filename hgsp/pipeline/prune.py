"""The pruning command: check the request, load, score, prune to every ratio asked for, save and measure."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hgsp.console.checksums import write_checksums
from hgsp.console.exit_codes import quiet_libraries
from hgsp.console.log_file import LogFile, show
from hgsp.console.portable_paths import portable
from hgsp.console.progress import Timings, log_finished, terminal
from hgsp.console.report_schema import PRUNING_REPORT
from hgsp.console.result_folders import reserved
from hgsp.console.scratch import ScratchFolder
from hgsp.console.settings_file import RUN_SETTINGS, write_settings
from hgsp.data.texts import CALIBRATE, load_text
from hgsp.environment import process_rank, write_json
from hgsp.evaluation.metrics.ppl import window_length
from hgsp.evaluation.pre_post import PrePostEvaluation
from hgsp.models.hub_upload import check_upload, upload
from hgsp.models.loaded import LoadedModel, load_for_pruning
from hgsp.models.processes import is_main_process, join_processes, leave_processes
from hgsp.models.tokenizers import load_own_tokenizer
from hgsp.pipeline import forecast, report, stages
from hgsp.pipeline.calibrations import Calibrations, draw_calibrations
from hgsp.pipeline.closing import show_result
from hgsp.pipeline.config import PruneConfig
from hgsp.pipeline.decision import decide
from hgsp.pipeline.dry_run import dry_run_table, engine_table
from hgsp.pipeline.recover import prepare_after_pruning, recover_all
from hgsp.pipeline.request import Request, prepare, result_folder
from hgsp.pipeline.results import write_result
from hgsp.pipeline.saved_scores import load_scores, overruled_settings
from hgsp.pipeline.speed import SpeedReport
from hgsp.pruning.budget import Budget
from hgsp.pruning.plan import PrunePlan
from hgsp.report.model_card import write_model_card
from hgsp.report.page import write_report
from hgsp.scoring.scores import Scores

LOG = logging.getLogger("hgsp")
TRAINING_LOG = Path("logs", "training.log")


@dataclass
class _Run:
    """The state of one run of the command, filled from stage to stage."""

    request: Request
    command: str
    log: LogFile
    scores: Scores | None
    warnings: list[str]
    timings: Timings = field(default_factory=lambda: Timings(finished=log_finished))
    measure: PrePostEvaluation = field(init=False)
    tokenizer: Any = field(init=False)
    calibrations: Calibrations = field(default_factory=Calibrations)
    speed: SpeedReport | None = field(init=False, default=None)
    repo_id: str | None = None  # of --push_to_hub
    upload_failed: bool = False

    def __post_init__(self) -> None:
        config, geometry = self.request.config, self.request.geometry
        if self.request.profile is not None:
            measures = not (config.skip_evaluation or config.offload)
            self.speed = SpeedReport(*self.request.profile, geometry.shapes, measures)
        self.measure = PrePostEvaluation(self.request.config, offloaded=self.request.config.offload)


def prune(config: PruneConfig, command: str) -> int:
    """Run the command for one configuration; returns the exit code.

    Raises:
        InputError: the request cannot be met; nothing is written then.
        NumericalError: a statistic is not finite.
    """
    quiet_libraries()
    request = prepare(config)
    warnings = list(request.warnings)
    scores = None
    if config.scores is not None:
        scores = load_scores(request)
        warnings += overruled_settings(scores, config)
    if config.dry_run:
        _dry_run(request, scores)
        return 0
    repo_id = None if config.push_to_hub is None else check_upload(config.push_to_hub)
    with (
        reserved(*map(request.folder, config.ratios)),
        ScratchFolder() as scratch,
        LogFile(scratch / "training.log") as log,
    ):
        LOG.info("command: %s", command)
        run = _Run(request, command, log, scores, warnings, repo_id=repo_id)
        run.tokenizer, surplus = load_own_tokenizer(request.source)
        run.warnings += surplus
        run.measure.check(request.source.config, run.tokenizer)
        recoveries = prepare_after_pruning(config, request, run.tokenizer) if config.finetune else []
        _read_texts(run)
        forecast.check_spill(config, request.geometry, run.calibrations)
        _log_forecast(run)
        dense = _load_and_score(run)
        if dense is None:  # another process of this run goes on alone
            return 0
        for number, (ratio, budget) in enumerate(zip(config.ratios, request.budgets, strict=True)):
            dense = _prune_to(run, ratio, budget, dense, is_first=number == 0)
    return recover_all(recoveries, command) or int(run.upload_failed)


def _dry_run(request: Request, scores: Scores | None) -> None:
    """Print the shapes, with scores also those that would be kept."""
    config = request.config
    if scores is None or config.rounds > 1:
        show(dry_run_table(request))
        _show_engines(request)
        return
    for budget in request.budgets:
        decision = decide(scores, request.geometry, request.selection(budget), config.recipe)
        show(dry_run_table(request, decision.plan))
        _show_engines(request, decision.plan)


def _show_engines(request: Request, plan: PrunePlan | None = None) -> None:
    """Print the sizes in the formats of engines, which are known of models without experts and linear attention."""
    if not (request.geometry.experts_per_token or request.geometry.linear_attention_params):
        show(engine_table(request, plan))


def _read_texts(run: _Run) -> None:
    """Read the calibration texts and draw the sequences of every stage."""
    config = run.request.config
    if not config.reads_text:
        return
    texts = [load_text(name, CALIBRATE, config.data_dir) for name in config.datasets]
    run.warnings += [warning for text in texts for warning in run.measure.overlap_warnings(text)]
    run.calibrations = draw_calibrations(
        config.recipe,
        texts,
        run.tokenizer,
        num_embeddings=run.request.source.config.vocab_size,
        seq_len=config.seq_len,
        seed=config.seed,
        scoring=config.scores_text,
    )


def _log_forecast(run: _Run) -> None:
    """Log the stages ahead with their time, memory and disk, in the first process."""
    request, config = run.request, run.request.config
    if process_rank():
        return
    evaluated = run.measure.num_tokens(request.source.config, request.device)
    speed = forecast.measure_speed(request.device, config.dtype)
    seconds = forecast.seconds_of_stages(
        request.geometry,
        config.recipe,
        run.calibrations,
        evaluated,
        speed,
        num_results=len(request.budgets),
        empties_blocks=config.allow_empty_blocks,
    )
    eval_seq_len = window_length(request.source.config, config.eval_seq_len) if config.evaluation_texts else None
    memory = forecast.peak_bytes(request, run.calibrations, eval_seq_len)
    LOG.info("%s", forecast.describe(request, seconds, memory))
    for warning in [*run.warnings, *forecast.memory_warnings(request)]:
        LOG.warning("%s", warning)


def _load_and_score(run: _Run) -> LoadedModel | None:
    """Load, score and measure the dense model; None in processes that only shared the scoring."""
    request, config = run.request, run.request.config
    join_processes(request.device)
    dense = _load(run, run.timings)
    with run.timings.stage("score"):
        if run.scores is None:
            run.scores = stages.score(
                dense,
                config.recipe,
                run.calibrations.scoring,
                request.resources(),
                base_model=config.base_model,
                seed=config.seed,
                progress=terminal,
            )
        else:
            run.scores.check_belongs_to(dense)
    is_main = is_main_process()
    leave_processes()
    if not is_main:
        return None
    with run.timings.stage("evaluate"):
        run.measure.before(dense.model, run.tokenizer)
        if run.speed is not None:
            run.speed.before(dense.model)
    return dense


def _load(run: _Run, timings: Timings) -> LoadedModel:
    request, config = run.request, run.request.config
    LOG.info("loading %s", request.source.name)
    with timings.stage("load"):
        return load_for_pruning(request.source, config.dtype, request.device, offload=config.offload)


def _prune_to(run: _Run, ratio: float | None, budget: Budget, dense: LoadedModel, *, is_first: bool) -> LoadedModel:
    """Make, measure and write the result of one ratio; returns the dense model that was used."""
    request, config = run.request, run.request.config
    timings = Timings(run.timings, log_finished)
    if not is_first and not config.offload:
        dense = _load(run, timings)  # surgery consumed the last one
    assert run.scores is not None
    repo_id = None if run.repo_id is None else f"{run.repo_id}{config.suffix_for(ratio)}"
    with result_folder(request, ratio) as folder:
        pruning = stages.prune_in_rounds(
            dense,
            run.scores,
            request.selection(budget),
            config.recipe,
            run.calibrations,
            request.resources(ratio, folder),
            timings,
            terminal,
        )
        with timings.stage("save"):
            pruned = write_result(request, dense, pruning, run.scores, run.tokenizer, folder)
        with timings.stage("evaluate"):
            run.measure.after(pruned, run.tokenizer)
            shapes = tuple(keep.shape for keep in pruning.decision.plan.layers)
            speed = None if run.speed is None else run.speed.after(pruned, shapes)
        content = report.analysis(
            request,
            pruning,
            command=run.command,
            budget=budget,
            asked_ratio=ratio,
            params_after=sum(parameter.numel() for parameter in pruned.parameters()),
            evaluation=run.measure.results,
            samples=run.measure.samples,
            speed=speed,
            timings_s=timings,
            warnings=run.warnings + run.measure.warnings,
        )
        write_json(portable(content), folder / PRUNING_REPORT)
        write_model_card(folder, config.base_model, request.folder(ratio), repo_id)
        write_settings(config, folder / RUN_SETTINGS, run.command)
        write_checksums(folder)
        run.log.copy_to(folder / TRAINING_LOG)  # without the lines below: nothing that they meet can lose the result
    request.resume_paths(ratio).remove()
    target = request.folder(ratio)
    write_report(target)
    show_result(request, content, target, told=run.warnings)
    run.log.append_to(target / TRAINING_LOG)
    if repo_id is not None and upload(target, repo_id):
        run.upload_failed = True
    return dense
