#!/usr/bin/env python3
"""Run ``hgsp summarize`` from a checkout: one table and two plots of all results below some folders."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # a script imports from its own folder, not from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hgsp.cli.summarize import main

if __name__ == "__main__":
    sys.exit(main())
