#!/usr/bin/env python3
"""Recover a pruned model by training; ``hgsp finetune`` is the same."""

import sys

from hgsp.cli.finetune import main

if __name__ == "__main__":
    sys.exit(main())
