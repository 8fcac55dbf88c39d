#!/usr/bin/env python3
"""Print the path of the demo model; exit code 1 if its wheel is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # a script imports from its own folder, not from the checkout
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from hgsp.errors import InputError
from hgsp.study.demo_model import demo_model

if __name__ == "__main__":
    try:
        print(demo_model())
    except InputError as error:
        sys.exit(f"error: {error}")
