"""Run jobs on models, one model in memory at a time; results are written after every job and survive failures."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from hgsp.console.progress import terminal
from hgsp.console.report_schema import DONE, FAILED
from hgsp.errors import InputError, NumericalError
from hgsp.evaluation.config import EvaluationConfig
from hgsp.evaluation.jobs import Job, Measured
from hgsp.evaluation.models import ModelUnderTest, load_model
from hgsp.evaluation.results import Results, TaskResult
from hgsp.evaluation.tables import format_metric
from hgsp.models.processes import broadcast_from_main, is_distributed, is_main_process, wait_for_all

LOG = logging.getLogger("hgsp.evaluation")

#: Errors of one task that do not stop the others. Anything else is a bug and stops the run.
FAILURES = (ArithmeticError, ImportError, LookupError, MemoryError, OSError, RuntimeError, ValueError)


class Runner:
    """A runner of the jobs that ``results`` lacks. Only the main process records and writes.

    ``has_failed``: whether a task of this run failed; ``results`` may contain failures of earlier runs.
    """

    def __init__(
        self, config: EvaluationConfig, device: str, tokenizer: Any, fingerprint: str, results: Results
    ) -> None:
        self._config, self._device, self._tokenizer = config, device, tokenizer
        self._fingerprint, self.results = fingerprint, results
        self.has_failed = False

    def run(self, models: Sequence[ModelUnderTest], jobs: Sequence[Job]) -> None:
        """Run all jobs on all models."""
        for model in models:
            # the main process decides: another one may read results.json later, when more is written
            pending = broadcast_from_main([index for index, job in enumerate(jobs) if self._pending(model, job)])
            if not pending:
                continue
            LOG.info("%s: loading %s", model.role, model.name)
            loaded = load_model(model.name, self._config.dtype, self._device)
            for index in pending:
                self._run_one(model, loaded, jobs[index])
            del loaded
            release_memory()

    def fail(self, models: Sequence[ModelUnderTest], failures: Mapping[str, str]) -> None:
        """Record tasks that could not be prepared as failed."""
        for model in models:
            for task, reason in failures.items():
                self.record(TaskResult(model.role, task, FAILED, model.identity, {}, reason=reason))

    def record(self, result: TaskResult) -> None:
        """Add a result, log it and write the file, in the main process only."""
        if not is_main_process():
            return
        self.results.add(result)
        self.results.write({})
        if result.status == FAILED:
            self.has_failed = True
            LOG.error("%s, %s: FAILED: %s", result.role, result.task, result.reason)
        else:
            values = ", ".join(f"{metric.name} {format_metric(metric)}" for metric in result.metrics)
            LOG.info("%s, %s: %s (%s)", result.role, result.task, values, result.summary)
            protocol = result.protocol.get("description", "")
            LOG.info("%s, %s: %s", result.role, result.task, protocol, extra={"file_only": True})

    def request(self, job_request: Mapping[str, Any]) -> dict[str, Any]:
        """Return a job's request with the tokenizer's fingerprint, which the numbers depend on too."""
        return {**job_request, "tokenizer": self._fingerprint}

    def _pending(self, model: ModelUnderTest, job: Job) -> bool:
        """Return whether a job must run; a result of another role with the same weights is copied instead."""
        wanted = TaskResult(model.role, job.task, FAILED, model.identity, self.request(job.request))
        if not self._config.rerun and self.results.done(model.role, wanted.key) is not None:
            LOG.info("%s, %s: measured before with the same protocol; --rerun measures again", model.role, job.task)
            return False
        return not self._copy_from_other_role(model, wanted.key)

    def _copy_from_other_role(self, model: ModelUnderTest, key: str) -> bool:
        for item in self.results.results:
            if item.role != model.role and (item.model, item.key, item.status) == (model.identity, key, DONE):
                self.record(replace(item, role=model.role))
                return True
        return False

    def _run_one(self, model: ModelUnderTest, loaded: Any, job: Job) -> None:
        base = TaskResult(model.role, job.task, FAILED, model.identity, self.request(job.request))
        start = time.perf_counter()
        if job.uses_all_processes or is_main_process():
            try:
                measured = job.run(loaded, self._tokenizer, terminal)
            except FAILURES as error:
                if job.uses_all_processes and is_distributed() and not isinstance(error, NumericalError):
                    raise  # the other processes wait for this one: stop them all
                self.record(replace(base, reason=reason_of(error)))
            else:
                if measured is not None:
                    self.record(done(base, measured, time.perf_counter() - start))
        wait_for_all()


def done(base: TaskResult, measured: Measured, seconds: float) -> TaskResult:
    """Return ``base`` as a finished result."""
    return replace(
        base,
        status=DONE,
        metrics=measured.metrics,
        num_items=measured.num_items,
        summary=measured.summary,
        protocol=measured.protocol,
        seconds=round(seconds, 2),
    )


def reason_of(error: BaseException) -> str:
    """Return the error as one line, with its type unless it is one of ours."""
    first = " ".join(str(error).split())[:300] or type(error).__name__
    return first if isinstance(error, (InputError, NumericalError)) else f"{type(error).__name__}: {first}"


def release_memory() -> None:
    """Free the memory of deleted models."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
