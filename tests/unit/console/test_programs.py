"""Proposed commands start as the running one did."""

import pytest

from hgsp.console.programs import program


@pytest.mark.parametrize(
    ("started", "command", "words"),
    [
        ("run_global_pruning.py", "evaluate", ["python", "evaluation/run_evaluation.py"]),
        ("../checkout/run_global_pruning.py", "finetune", ["python", "../checkout/finetune_lora.py"]),
        ("evaluation/run_evaluation.py", "prune", ["python", "run_global_pruning.py"]),
        ("run_global_pruning.py", "export", ["hgsp", "export"]),
        ("/usr/local/bin/hgsp", "evaluate", ["hgsp", "evaluate"]),
        ("/site-packages/hgsp/__main__.py", "evaluate", ["python", "-m", "hgsp", "evaluate"]),
        ("/site-packages/pytest/__main__.py", "evaluate", ["hgsp", "evaluate"]),
    ],
)
def test_commands_are_scripts_of_a_checkout_or_subcommands(started, command, words):
    assert program(command, started) == words
