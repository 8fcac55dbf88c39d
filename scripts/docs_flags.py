"""docs/FLAGS.md: every flag of every command, its default and its meaning, from the dataclasses that parse them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from docs_source import GENERATED, table

from hgsp.cli.main import COMMANDS, options_of
from hgsp.console.parser import PRESET, group_names, group_of, preset_help, presets_of

#: Subcommand -> the script of the same flags.
SCRIPTS = {
    "prune": "run_global_pruning.py",
    "finetune": "finetune_lora.py",
    "evaluate": "evaluation/run_evaluation.py",
    "study": "scripts/run_all_experiments.sh",
    "summarize": "scripts/summarize_results.py",
}
#: Subcommand -> the one whose flags it shares, and which come first on the page.
SHARES = {"score": "prune", "cut": "prune"}
NOTES = {
    "prune": "Recipes and their measurements: [USAGE.md](../USAGE.md#recipes).",
    "study": "All other flags are those of `hgsp prune`, for every cell.",
}
INTRODUCTION = """
Flags may be written with dashes (`--pruning-ratio`) or underscores. A flag given twice takes its last value. Lists
are separated by spaces, names of texts by commas.

Every command also has `--help`, `--version` and `--config FILE`, which reads flags from a YAML or JSON file whose keys
are their names. Flags of the command line take precedence over the file, and `--no_SWITCH` turns off a switch of it.
Every result has its settings beside it: `run.yaml` in a folder, `NAME.run.yaml` beside a single file.
"""
HEADER = ("flag", "group", "default", "values", "meaning")


def flags_page() -> str:
    """Return the page: one section with one table for every command."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in INTRODUCTION.split("\n\n")]
    parts = [GENERATED, "# Flags", *paragraphs]
    for command in COMMANDS:
        parts += [f"## hgsp {command}", *section(command)]
    return "\n\n".join(parts) + "\n"


def section(command: str) -> Iterator[str]:
    """Yield the notes and the table of a command; flags that it shares with another are only named."""
    options = options_of(command)
    if command in SCRIPTS:
        yield f"Also `{SCRIPTS[command]}`."
    if command in NOTES:
        yield NOTES[command]
    shown = set(rows(options_of(SHARES[command]))) if command in SHARES else set()
    found = list(rows(options))
    if {row[0] for row in found} >= {row[0] for row in shown} > set():
        yield f"As `hgsp {SHARES[command]}`, but:"
    elif same := [row[0] for row in found if row in shown]:
        yield f"As for `hgsp {SHARES[command]}`: {', '.join(same)}."
    yield table(HEADER, [row for row in found if row not in shown])


def rows(options: type) -> Iterator[tuple[str, ...]]:
    """Yield one row for each flag, group after group in the order of the help page."""
    order = group_names(options)
    of_fields = [_row(field, options) for field in dataclasses.fields(options)]
    of_presets = [
        (f"`--{name}`", PRESET, "unset", _listed(choices), preset_help(choices))
        for name, choices in presets_of(options).items()
    ]
    yield from sorted([*of_fields, *of_presets], key=lambda row: (order.index(row[1]), row[2] != "required"))


def _row(field: Any, options: type) -> tuple[str, ...]:
    """Return name, group, default, accepted values and meaning of a flag."""
    meta = field.metadata
    name = f"`{meta['metavar']}`" if meta.get("positional") else f"`--{field.name}`"
    meaning = meta["help"].replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")
    values = _listed(meta["choices"]) if meta.get("choices") else meta.get("range", "")
    return name, group_of(field, options), shown_default(field.default), values, meaning


def _listed(choices: Iterable[Any]) -> str:
    return ", ".join(f"`{choice}`" for choice in choices)


def shown_default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "unset"
    if value is False:
        return "off"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"
