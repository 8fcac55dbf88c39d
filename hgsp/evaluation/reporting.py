"""The report of an evaluation: its folder, warnings, results.json, results.md and the table."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hgsp.console.json_files import read_json_file
from hgsp.console.log_file import show
from hgsp.console.portable_paths import portable_path, portable_text
from hgsp.console.report_files import PruningReport
from hgsp.console.report_schema import BEFORE, DENSE, DONE, PRUNED, PRUNING_REPORT, RECOVERED, TOKEN_PPL
from hgsp.console.result_folders import refuse_unwritable
from hgsp.data.texts import texts_of
from hgsp.environment import describe_environment, launched_processes, write_atomically
from hgsp.evaluation.collapse import collapse_warning, has_collapsed
from hgsp.evaluation.config import EvaluationConfig
from hgsp.evaluation.results import (
    Results,
    TaskResult,
    canonical_path,
)
from hgsp.evaluation.tables import comparisons_as_dicts, markdown, terminal_table, zero_shot_averages
from hgsp.evaluation.tasks import EFFICIENCY, is_text

LOG = logging.getLogger("hgsp.evaluation")

#: Median over fastest round. Beside two other jobs on two cores it was 1.9 to 2.9, and latencies ten times too long.
MAX_TIMING_SPREAD = 1.5


def output_folder(config: EvaluationConfig) -> Path:
    """Return ``--output``, else ``evaluation/`` in the model's folder, else ``results/{name}/evaluation``.

    Raises:
        InputError: the folder cannot be written.
    """
    path = Path(canonical_path(config.model_path))
    if config.output is not None:
        folder = Path(config.output)
    elif path.is_dir():
        folder = path / "evaluation"
    else:
        folder = Path("results") / path.name / "evaluation"
    refuse_unwritable(folder, "--output")
    return folder


def provenance(command: str, device: str) -> dict[str, Any]:
    """Return the command, versions and hardware of the last run that added to the file."""
    # schema 1 of results.json has ``processes`` for the ``num_processes`` of the other reports
    return {"command": command, "environment": {**describe_environment(device), "processes": launched_processes()}}


def write_report(results: Results, folder: Path, origin: Mapping[str, Any]) -> None:
    """Write results.json and results.md, and show the table."""
    results.merge()
    analysis = pruning_analysis(results)
    collapsed = has_collapsed(perplexity_pairs(results.results, analysis))
    warnings = same_corpus_warnings(results.results, analysis)
    warnings += harm_warnings(results.results) + busy_warnings(results.results)
    if collapsed:
        warnings.append(collapse_warning())
    results.write(
        {
            "collapsed": collapsed,
            "zero_shot_average": zero_shot_averages(results),
            "comparison": comparisons_as_dicts(results),
            "warnings": warnings,
            **origin,
        }
    )
    title = f"{Path(results.models[PRUNED]['path']).name}: evaluation"
    device = origin["environment"]["device_name"]
    text = markdown(results, title, [*warnings, f"last measured on {device}"])
    write_atomically(folder / "results.md", portable_text(text))
    for warning in warnings:
        LOG.warning("%s", warning)
    show(terminal_table(results, title))
    LOG.info("results: %s", folder / "results.json")


def pruning_analysis(results: Results) -> dict[str, Any]:
    """Return the pruning report in the measured model's folder, empty without one.

    Raises:
        InputError: it is damaged.
    """
    path = Path(results.models[PRUNED]["path"]) / PRUNING_REPORT
    if not path.is_file():
        return {}
    expected, remedy = (
        "the pruning report beside the model, or none",
        "delete the file: the evaluation does not need it",
    )
    return dict(read_json_file(path, PruningReport, expected, remedy))


def perplexity_pairs(results: Sequence[TaskResult], analysis: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """Yield (dense, other) token perplexities by the same protocol; dense from ``results``, else from pruning."""
    for item in results:
        if item.role == DENSE or item.status != DONE or not is_text(item.task):
            continue
        dense = _dense_ppl(item, results, analysis)
        if dense is not None:
            yield dense, item.by_name[TOKEN_PPL].value


def _dense_ppl(item: TaskResult, results: Sequence[TaskResult], analysis: Mapping[str, Any]) -> float | None:
    for other in results:
        if (other.role, other.key, other.status) == (DENSE, item.key, DONE):
            return other.by_name[TOKEN_PPL].value
    same = ("sha256", "seq_len", "windows", "tokens", "bos", "dtype")
    for before in analysis.get("evaluation", {}).get(BEFORE, {}).values():
        if all(before.get(name) == item.protocol.get(name) for name in same):
            return float(before["ppl"])
    return None


def same_corpus_warnings(results: Sequence[TaskResult], analysis: Mapping[str, Any]) -> list[str]:
    """Warn where the model was calibrated on the corpus it is evaluated on."""
    calibration = (analysis.get("scoring") or {}).get("calibration")
    if not calibration:
        return []
    evaluated = {
        portable_path(item.task): item.protocol.get("split", "its split unknown")
        for item in results
        if item.role == PRUNED and item.status == DONE and is_text(item.task)
    }
    return [
        f"calibrated on {calibration['source']}, evaluated on {corpus} ({evaluated[corpus]}): the same corpus, which "
        "biases the pruned model's perplexity low"
        for corpus in texts_of(calibration)
        if corpus in evaluated
    ]


def harm_warnings(results: Sequence[TaskResult]) -> list[str]:
    """Warn where the recovered model's perplexity is higher than the pruned one's by the same protocol."""
    ppl = {
        (item.role, item.key): item.by_name[TOKEN_PPL].value
        for item in results
        if item.status == DONE and is_text(item.task)
    }
    harmed = (
        item.task for item in results if ppl.get((RECOVERED, item.key), 0) > ppl.get((PRUNED, item.key), math.inf)
    )
    worse = ", ".join(dict.fromkeys(harmed))
    return [f"RECOVERY MADE IT WORSE: perplexity on {worse} is higher than the pruned model's"] if worse else []


def busy_warnings(results: Sequence[TaskResult]) -> list[str]:
    """Warn where other jobs kept the machine busy while models were timed."""
    timing_spread = max(
        (item.protocol.get("timing_spread", 1.0) for item in results if item.task == EFFICIENCY), default=1.0
    )
    if timing_spread <= MAX_TIMING_SPREAD:
        return []
    return [
        f"efficiency: half of the rounds took more than {timing_spread:.1f} times as long as the fastest: the machine "
        "was busy and the latencies are unreliable; measure again (--rerun) when it is idle"
    ]
