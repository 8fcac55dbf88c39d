"""``hgsp cut``: prune from the scores that ``hgsp score`` or an earlier run wrote; no calibration."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import run_global_pruning


def main(argv: Sequence[str] | None = None) -> int:
    """The pruning recipe with ``--scores`` required."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    if not asks_for_help and not any(argument.split("=")[0] == "--scores" for argument in arguments):
        print("error: expected --scores PATH; got none; make the file with `hgsp score`", file=sys.stderr)
        return 2
    return run_global_pruning.main(arguments)
