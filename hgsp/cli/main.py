"""The command ``hgsp``: dispatches to its subcommands."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hgsp.console.exit_codes import fail, run_guarded
from hgsp.console.nearest import did_you_mean

#: Subcommand -> purpose. Each is a module of ``hgsp.cli`` with a ``main`` and its OPTIONS.
COMMANDS = {
    "prune": "score, prune, save and evaluate a model",
    "score": "score a model and write scores.npz",
    "cut": "prune a model from scores.npz",
    "finetune": "recover a pruned model's quality by training",
    "evaluate": "measure a model, dense or pruned",
    "report": "write the page of a result again, or one that compares several",
    "study": "prune three models at several ratios",
    "summarize": "tabulate and plot many results",
    "profile": "time the blocks of a model on this device",
    "export": "write a pruned model in the format of another engine",
    "verify": "check a model's folder against its checksums, plan and dense model",
    "families": "list the supported architectures",
    "doctor": "tell which engines run a model, and what would change it",
}
EPILOG = """
`hgsp COMMAND --help` lists the flags, written with dashes or underscores. Every
result has its settings beside it, from which a run can be repeated:
  hgsp prune --config results/NAME/run.yaml --output_name AGAIN

Completion in bash and zsh: `pip install argcomplete`, then add this line to
~/.bashrc or ~/.zshrc:
  eval "$(register-python-argcomplete hgsp)"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``hgsp COMMAND ...`` and return its exit code."""
    if "_ARGCOMPLETE" in os.environ:
        complete()
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_guarded(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        print("usage: hgsp COMMAND [flags]\n")
        for name, purpose in COMMANDS.items():
            print(f"  {name:<{width}}  {purpose}")
        print(EPILOG, end="")
        return 0
    command, *others = arguments
    if command == "--version":
        from hgsp import __version__

        print(__version__)
        return 0
    if command not in COMMANDS:
        hint = did_you_mean(command, [*COMMANDS, "help", "--version"], f"one of {', '.join(COMMANDS)}")
        return fail(2, f"expected a command of hgsp; got '{command}'; {hint}")
    code: int = _module(command).main(others)
    return code


def options_of(command: str) -> type:
    """Return the options class of a subcommand."""
    options: type = _module(command).OPTIONS
    return options


def complete() -> None:
    """Print completions for the shell and exit; argcomplete starts the command for that."""
    if find_spec("argcomplete") is None:
        return
    import argcomplete

    argcomplete.autocomplete(completion_parser(), always_complete_options="long")


def completion_parser() -> argparse.ArgumentParser:
    """Return a parser of all subcommands with all their flags."""
    from hgsp.console.parser import parser_of

    parser = argparse.ArgumentParser(prog="hgsp")
    commands: Any = parser.add_subparsers()
    for name, purpose in COMMANDS.items():
        commands.add_parser(
            name, help=purpose, parents=[parser_of(options_of(name), f"hgsp {name}", "")], add_help=False
        )
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f"hgsp.cli.{command}")


if __name__ == "__main__":
    sys.exit(main())
