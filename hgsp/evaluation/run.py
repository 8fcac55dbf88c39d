"""The evaluation recipe: check the request, measure the tasks that are missing, write and show the results."""

from __future__ import annotations

import logging

from hgsp.console.disk import check_free_space
from hgsp.console.log_file import LogFile
from hgsp.console.report_schema import EVALUATION_RESULTS
from hgsp.console.scratch import ScratchFolder
from hgsp.console.settings_file import settings_beside, write_settings
from hgsp.environment import launched_processes
from hgsp.evaluation import reporting
from hgsp.evaluation.config import EvaluationConfig
from hgsp.evaluation.jobs import prepare_jobs
from hgsp.evaluation.models import models_under_test, overflow_warnings, tokenizer_fingerprint, tokenizer_of
from hgsp.evaluation.results import Results
from hgsp.evaluation.runner import Runner
from hgsp.evaluation.side_by_side import run_efficiency
from hgsp.evaluation.tasks import EFFICIENCY
from hgsp.models.devices import resolve_device
from hgsp.models.processes import is_main_process, join_with_own_device, leave_processes, wait_for_all

LOG = logging.getLogger("hgsp.evaluation")
#: Bytes of results, tables, report and log.
RESULT_BYTES = 1_000_000


def run_evaluation(config: EvaluationConfig, command: str) -> int:
    """Run the recipe for one configuration; return the exit code, 1 if a task failed.

    Raises:
        InputError: a full disk, or as ``models_under_test``, ``tokenizer_of`` and ``prepare_jobs``.
    """
    with ScratchFolder() as scratch, LogFile(scratch / "evaluation.log") as log:
        resolve_device(config.device)
        models = models_under_test(config)
        folder = reporting.output_folder(config)
        check_free_space(folder, RESULT_BYTES, "the results", "choose another --output")
        results = Results.open(folder)
        for model in models:
            results.enter(model.role, model.path, model.identity)
        reporting.pruning_analysis(results)  # a damaged one is refused before anything is measured
        tokenizer = tokenizer_of(config, models)
        device = join_with_own_device(config.device)
        if is_main_process():
            _log_start(command, overflow_warnings(models, config.dtype))
        jobs, failures = prepare_jobs(config.task_names, config.options, config.seq_len, config.data_dir)
        runner = Runner(config, device, tokenizer, tokenizer_fingerprint(tokenizer), results)
        runner.fail(models, failures)
        runner.run(models, jobs)
        if EFFICIENCY in config.task_names and is_main_process():
            run_efficiency(runner, models, config, device)
        wait_for_all()
        is_main = is_main_process()
        leave_processes()
        if is_main:
            reporting.write_report(results, folder, reporting.provenance(command, device))
            write_settings(config, settings_beside(folder / EVALUATION_RESULTS), command)
            log.copy_to(folder / "evaluation.log")
    return int(runner.has_failed)


def _log_start(command: str, warnings: list[str]) -> None:
    LOG.info("command: %s", command)
    if launched_processes() > 1:
        LOG.info(
            "%d processes share the items of lm-eval tasks, each with its own copy of the model; the first one alone "
            "measures perplexity and efficiency and writes the results",
            launched_processes(),
        )
    for warning in warnings:
        LOG.warning("%s", warning)
