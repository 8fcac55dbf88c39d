"""``hgsp cut``: prune from the scores that ``hgsp score`` or an earlier run wrote, without calibration."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hgsp.cli import prune
from hgsp.console.exit_codes import fail


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pruning command with ``--scores`` required."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    if not asks_for_help and not any(argument.split("=")[0] == "--scores" for argument in arguments):
        return fail(2, "expected --scores PATH; got none; make the file with `hgsp score`")
    return prune.main(arguments)
