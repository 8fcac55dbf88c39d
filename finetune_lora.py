#!/usr/bin/env python3
"""Recover a pruned model by training; ``hgsp finetune`` is the same."""

import sys
from functools import partial

from hgsp.cli import finetune

main = partial(finetune.main, prog="finetune_lora.py")

if __name__ == "__main__":
    sys.exit(main())
