"""Prune a causal language model: score all groups, prune the least important, save a smaller checkpoint, measure it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from hgsp.console.exit_codes import run_guarded
from hgsp.console.flags import parse
from hgsp.pipeline.config import PruneConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pruning command; exit code 0 done, 2 bad input (nothing written), 1 failure."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        config = parse(PruneConfig, arguments, prog="run_global_pruning.py", description=__doc__ or "")
        from hgsp.pipeline.prune import prune

        return prune(config, shlex.join(["run_global_pruning.py", *arguments]))

    return run_guarded(run)


if __name__ == "__main__":
    sys.exit(main())
