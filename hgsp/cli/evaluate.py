"""Measure a model, dense or pruned: perplexity, LAMBADA, zero-shot tasks, latency and memory."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from hgsp.console.exit_codes import quiet_libraries, run_guarded
from hgsp.console.flags import parse
from hgsp.evaluation.config import EvaluationConfig

PROG = "run_evaluation.py"
OUT_OF_MEMORY = "results measured so far are kept. Try a smaller model or --dtype bfloat16"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the evaluation recipe; exit code 0 done, 1 a task failed (the others are kept), 2 bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        config = parse(EvaluationConfig, arguments, prog=PROG, description=__doc__ or "")
        quiet_libraries()
        from hgsp.evaluation.reporting import output_folder
        from hgsp.evaluation.run import run_evaluation
        from hgsp.report.page import write_evaluation_report

        code = run_evaluation(config, shlex.join([PROG, *arguments]))
        write_evaluation_report(output_folder(config))
        return code

    return run_guarded(run, OUT_OF_MEMORY)
