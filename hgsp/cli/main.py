"""The command ``hgsp``: dispatches to its subcommands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from hgsp.console.exit_codes import fail

#: Subcommand -> purpose. Each is a module of ``hgsp.cli`` with a ``main``.
COMMANDS = {
    "prune": "score, prune, save and evaluate a model",
    "score": "score a model and write scores.npz",
    "cut": "prune a model from scores.npz",
    "finetune": "recover a pruned model's quality by training",
    "evaluate": "measure a model, dense or pruned",
    "report": "write the page of a result again, or one that compares several",
    "summarize": "tabulate and plot many results",
    "profile": "time the blocks of a model on this device",
    "export": "write a pruned model in the format of another engine",
    "doctor": "tell which engines run a model, and what would change it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``hgsp COMMAND ...`` and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: hgsp COMMAND ...\n")
        for name, purpose in COMMANDS.items():
            print(f"  {name:<9} {purpose}")
        print("\n`hgsp COMMAND --help` lists the flags.")
        return 0
    if arguments[0] == "--version":
        from hgsp import __version__

        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        return fail(2, f"expected one of {', '.join(COMMANDS)}; got '{arguments[0]}'; see hgsp --help")
    command: int = importlib.import_module(f"hgsp.cli.{arguments[0]}").main(arguments[1:])
    return command
