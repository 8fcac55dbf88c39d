#!/usr/bin/env python3
"""Prune a causal language model: score all groups, cut the least important, save a smaller checkpoint, measure it."""

from __future__ import annotations

import logging
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hgsp.cli.main import quiet_libraries, run_guarded
from hgsp.console.flags import parse
from hgsp.pipeline.config import PruneConfig

LOG = logging.getLogger("hgsp")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; exit code 0 done, 2 bad input (nothing written), 1 failure."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        config = parse(PruneConfig, arguments, prog="run_global_pruning.py", description=__doc__ or "")
        return prune(config, shlex.join(["run_global_pruning.py", *arguments]))

    return run_guarded(run)


def prune(config: PruneConfig, command: str) -> int:
    """The whole recipe for one configuration."""
    quiet_libraries()
    from finetune_lora import prepare_after_pruning, recover_all
    from hgsp.console.log_file import LogFile, show
    from hgsp.console.progress import Timings, terminal
    from hgsp.data.texts import CALIBRATE, load_text
    from hgsp.evaluation.pre_post import PrePostEvaluation
    from hgsp.layerwise.distributed import is_main_process, join_processes, leave_processes
    from hgsp.models.loaded import load_for_pruning
    from hgsp.models.tokenizers import load_own_tokenizer
    from hgsp.pipeline import report
    from hgsp.pipeline import run as pipeline
    from hgsp.pipeline.decision import cut
    from hgsp.pipeline.request import Calibrations, draw_calibrations, prepare, result_folder, resume_paths

    request = prepare(config)
    warnings = list(request.source.warnings)
    scores = None
    if config.scores is not None:
        scores = pipeline.load_scores(request)
        warnings += pipeline.overruled_by(scores, config)
    if config.dry_run:
        if scores is None or config.rounds > 1:
            show(report.dry_run_table(request))
            return 0
        for budget in request.budgets:
            show(report.dry_run_table(request, cut(request, scores, budget).plan))
        return 0

    timings = Timings()
    with tempfile.TemporaryDirectory() as scratch, LogFile(Path(scratch) / "training.log") as log:
        LOG.info("command: %s", command)
        measure = PrePostEvaluation(config, offloaded=config.offload)
        tokenizer, surplus = load_own_tokenizer(request.source)
        warnings += surplus
        measure.check(request.source.config, tokenizer)
        recoveries = prepare_after_pruning(config, request, tokenizer) if config.finetune else []
        calibrations = Calibrations()
        if config.reads_text:
            texts = [load_text(name, CALIBRATE, config.data_dir) for name in config.datasets]
            warnings += [warning for text in texts for warning in measure.overlap_warnings(text)]
            calibrations = draw_calibrations(config, texts, tokenizer, request.source.config.vocab_size)
        join_processes(request.device)
        with timings.stage("load"):
            loaded = load_for_pruning(request.source, config.dtype, request.device, offload=config.offload)
        with timings.stage("score"):
            if scores is None:
                scores = pipeline.score(config, loaded, calibrations.scoring, terminal)
            else:
                scores.check_belongs_to(request.geometry, pipeline.weight_sample(loaded), config.dtype)
        is_main = is_main_process()
        leave_processes()
        if not is_main:
            return 0
        with timings.stage("evaluate"):
            measure.before(loaded.model, tokenizer)

        for number, (ratio, budget) in enumerate(zip(config.pruning_ratio, request.budgets, strict=True)):
            seconds = Timings(timings)
            if number and not config.offload:
                with seconds.stage("load"):
                    # surgery consumed the last one
                    loaded = load_for_pruning(request.source, config.dtype, request.device)
            state = resume_paths(request, ratio)
            with result_folder(request, ratio) as folder:
                decision, reconstructed = pipeline.prune_in_rounds(
                    request, loaded, scores, budget, calibrations, folder, state, seconds, terminal
                )
                with seconds.stage("save"):
                    pruned = pipeline.write_result(request, loaded, decision, scores, tokenizer, folder, reconstructed)
                with seconds.stage("evaluate"):
                    measure.after(pruned, tokenizer)
                content = report.analysis(
                    request,
                    decision,
                    command=command,
                    asked_ratio=ratio,
                    params_after=sum(parameter.numel() for parameter in pruned.parameters()),
                    evaluation=measure.results,
                    samples=measure.samples,
                    timings_s=seconds,
                    warnings=warnings + measure.warnings,
                    reconstructed=reconstructed,
                )
                _finish(content, folder, log, request.folder(ratio))
            state.remove()
            del pruned
    del loaded
    return recover_all(recoveries, command)


def _finish(content: dict[str, Any], folder: Path, log: Any, target: Path) -> None:
    """Write the report and the log, and tell the user what came out and what to do next."""
    from hgsp.console.log_file import show
    from hgsp.pipeline.report import closing_table, write_json

    write_json(content, folder / "pruning_analysis.json")
    for warning in content["warnings"]:
        LOG.warning("%s", warning)
    show(closing_table(content))
    models = shlex.join(["--model_path", str(target), "--base_model", content["base_model"]])
    LOG.info("result: %s\nnext: python evaluation/run_evaluation.py %s --tasks wikitext,c4", target, models)
    log.copy_to(folder / "logs" / "training.log")


if __name__ == "__main__":
    sys.exit(main())
