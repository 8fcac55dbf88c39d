#!/usr/bin/env python3
"""Prune a causal language model (``hgsp prune``)."""

import sys

from hgsp.cli.prune import main

if __name__ == "__main__":
    sys.exit(main())
