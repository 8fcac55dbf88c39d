"""Recover the quality of a pruned model: train it on instructions or on its dense teacher, and save it merged."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hgsp.console.exit_codes import quiet_libraries, run_guarded
from hgsp.console.flags import parse
from hgsp.console.settings_file import command_line
from hgsp.pipeline.recovery_config import INTERRUPTED, OUT_OF_MEMORY, RecoveryConfig

OPTIONS = RecoveryConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp finetune") -> int:
    """Run the recovery recipe; exit code 0 done, 2 bad input (nothing written), 1 failure."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        config = parse(OPTIONS, arguments, prog=prog, description=__doc__ or "")
        quiet_libraries()
        from hgsp.pipeline.recover import finetune

        return finetune(config, command_line(prog, arguments, config))

    return run_guarded(run, OUT_OF_MEMORY, INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
