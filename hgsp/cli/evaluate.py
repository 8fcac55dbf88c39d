"""Measure a model, dense or pruned: perplexity, LAMBADA, zero-shot tasks, latency and memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hgsp.console.exit_codes import quiet_libraries, run_guarded
from hgsp.console.flags import parse
from hgsp.console.settings_file import command_line
from hgsp.evaluation.config import EvaluationConfig

OPTIONS = EvaluationConfig
OUT_OF_MEMORY = "results measured so far are kept. Try a smaller model or --dtype bfloat16"


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp evaluate") -> int:
    """Run the evaluation recipe; exit code 0 done, 1 a task failed (the others are kept), 2 bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        config = parse(OPTIONS, arguments, prog=prog, description=__doc__ or "")
        quiet_libraries()
        from hgsp.evaluation.run import run_evaluation

        return run_evaluation(config, command_line(prog, arguments, config))

    return run_guarded(run, OUT_OF_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
