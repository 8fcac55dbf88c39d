#!/usr/bin/env python3
"""One table and two plots over all results below some folders: ``hgsp summarize`` for a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # as a script, Python looks for modules beside this file instead of in the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hgsp.cli.summarize import main

if __name__ == "__main__":
    sys.exit(main())
