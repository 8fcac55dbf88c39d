"""Prune from the scores that ``hgsp score`` or an earlier run wrote, without calibration."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hgsp.cli import prune
from hgsp.pipeline.config import CutConfig

OPTIONS = CutConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp cut") -> int:
    """Run the pruning command with ``--scores`` required."""
    return prune.run(OPTIONS, argv, prog, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
