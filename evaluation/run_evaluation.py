#!/usr/bin/env python3
"""Measure a model, dense or pruned: perplexity, LAMBADA, zero-shot tasks, and its real gain in speed and memory."""

from __future__ import annotations

import logging
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # as a script, Python looks for modules beside this file instead of in the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hgsp.console.exit_codes import quiet_libraries, run_guarded
from hgsp.console.flags import parse
from hgsp.evaluation.config import EvaluationConfig

LOG = logging.getLogger("hgsp")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; exit code 0 done, 1 a task failed (the others are kept), 2 bad input (nothing measured)."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        config = parse(EvaluationConfig, arguments, prog="run_evaluation.py", description=__doc__ or "")
        return evaluate(config, shlex.join(["run_evaluation.py", *arguments]))

    return run_guarded(run, "what was measured before is kept. Try a smaller model or --dtype bfloat16")


def evaluate(config: EvaluationConfig, command: str) -> int:
    """The whole recipe for one configuration."""
    quiet_libraries()
    from hgsp.console.log_file import LogFile
    from hgsp.evaluation import reporting as closing
    from hgsp.evaluation.jobs import prepare_jobs
    from hgsp.evaluation.models import (
        models_under_test,
        overflow_warnings,
        own_device,
        tokenizer_fingerprint,
        tokenizer_of,
    )
    from hgsp.evaluation.results import Results
    from hgsp.evaluation.runner import Runner
    from hgsp.evaluation.side_by_side import run_efficiency
    from hgsp.evaluation.tasks import EFFICIENCY
    from hgsp.layerwise.distributed import is_main_process, leave_processes, wait_for_all

    with tempfile.TemporaryDirectory() as scratch, LogFile(Path(scratch) / "evaluation.log") as log:
        models = models_under_test(config)
        folder = closing.output_folder(config)
        results = Results.open(folder)
        for model in models:
            results.enter(model.role, model.path, model.identity)
        tokenizer = tokenizer_of(config, models)
        device = own_device(config.device)
        if is_main_process():
            LOG.info("command: %s", command)
            for warning in overflow_warnings(models, config.dtype):
                LOG.warning("%s", warning)
        jobs, failures = prepare_jobs(config)
        runner = Runner(config, device, tokenizer, tokenizer_fingerprint(tokenizer), results)
        runner.fail(models, failures)
        runner.run(models, jobs)
        if EFFICIENCY in config.task_names and is_main_process():
            run_efficiency(runner, models, config, device)
        wait_for_all()
        is_main = is_main_process()
        leave_processes()
        if not is_main:
            return 0
        closing.finish(results, folder, closing.provenance(command, device))
        log.copy_to(folder / "evaluation.log")
    return int(runner.has_failed)


if __name__ == "__main__":
    sys.exit(main())
