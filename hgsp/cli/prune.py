"""Prune a causal language model: score all groups, prune the least important, save a smaller checkpoint, measure it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hgsp.console.exit_codes import run_guarded
from hgsp.console.flags import parse
from hgsp.console.settings_file import command_line
from hgsp.pipeline.config import PruneConfig

OPTIONS = PruneConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp prune") -> int:
    """Run the pruning command; exit code 0 done, 2 bad input (nothing written), 1 failure."""
    return run(OPTIONS, argv, prog, __doc__ or "")


def run(options: type[PruneConfig], argv: Sequence[str] | None, prog: str, description: str) -> int:
    """Run the pruning command with its own options class, or with that of ``hgsp cut``."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def parse_and_prune() -> int:
        config = parse(options, arguments, prog=prog, description=description)
        from hgsp.pipeline.prune import prune

        return prune(config, command_line(prog, arguments, config))

    return run_guarded(parse_and_prune)


if __name__ == "__main__":
    sys.exit(main())
