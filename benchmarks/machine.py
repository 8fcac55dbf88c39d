"""Provenance of benchmark results: command, commit and hardware."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from hgsp.environment import device_name

#: Makes glibc return freed tensors to the system at once, so that peaks count memory in use and not memory cached.
TRIM_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def provenance() -> dict[str, Any]:
    """Return command (paths shortened to names), commit (``+`` if the tree is dirty), versions and hardware."""
    script, *arguments = sys.argv
    names = [Path(argument).name if "/" in argument else argument for argument in arguments]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *names]),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": device_name("auto"),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
    }


def _git(*arguments: str) -> str:
    """Return the output of git; empty where it is not installed."""
    if shutil.which("git") is None:
        return ""
    run = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return run.stdout.strip()
