#!/usr/bin/env python3
"""Measure a model; ``hgsp evaluate`` is the same."""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # as a script, Python looks for modules beside this file instead of in the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hgsp.cli import evaluate

main = partial(evaluate.main, prog="run_evaluation.py")

if __name__ == "__main__":
    sys.exit(main())
