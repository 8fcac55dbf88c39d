"""One cell of the study: the pruning command, run while holding the cell lock."""

from __future__ import annotations

import sys

from filelock import FileLock

from hgsp.cli.prune import main

if __name__ == "__main__":
    with FileLock(sys.argv[1]):
        sys.exit(main(sys.argv[2:]))
