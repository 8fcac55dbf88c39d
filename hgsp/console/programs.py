"""The words that start a command in this situation: a script of a checkout, or a subcommand of ``hgsp``."""

from __future__ import annotations

import sys
from pathlib import Path

#: Subcommand -> the script of a checkout that does the same.
SCRIPTS = {
    "prune": "run_global_pruning.py",
    "finetune": "finetune_lora.py",
    "evaluate": "evaluation/run_evaluation.py",
}


def program(command: str, started: str | None = None) -> list[str]:
    """Return how to start a subcommand: as a script if this process is one of them, else as ``hgsp`` was started.

    Args:
        started: the path of the running program; None is ``sys.argv[0]``.
    """
    running = Path(sys.argv[0] if started is None else started)
    for script in SCRIPTS.values():
        depth = len(Path(script).parts)
        if command in SCRIPTS and running.parts[-depth:] == Path(script).parts:
            return ["python", str(Path(*running.parts[:-depth], SCRIPTS[command]))]
    is_module = running.parts[-2:] == ("hgsp", "__main__.py")
    return ["python", "-m", "hgsp", command] if is_module else ["hgsp", command]
