"""What every benchmark says about itself: command, commit and hardware."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

#: Environment in which glibc returns freed tensors to the system at once: a peak is what is needed, not what was kept.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def provenance() -> dict[str, Any]:
    """Command (paths shortened to names), commit (``+``: the tree has changes), versions, processor or GPU."""
    script, *arguments = sys.argv
    names = [Path(argument).name if "/" in argument else argument for argument in arguments]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *names]),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
    }


def peak_rss_bytes() -> int:
    """Most main memory this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return run.stdout.strip()
