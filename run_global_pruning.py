#!/usr/bin/env python3
"""Prune a causal language model; ``hgsp prune`` is the same."""

import sys
from functools import partial

from hgsp.cli import prune

main = partial(prune.main, prog="run_global_pruning.py")

if __name__ == "__main__":
    sys.exit(main())
