"""docs/FLAGS.md: every flag of every command, its default and its meaning, from the dataclasses that parse them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from docs_source import GENERATED, table

from hgsp.cli.profile import ProfileConfig
from hgsp.cli.report import ReportConfig
from hgsp.cli.summarize import SummaryConfig
from hgsp.evaluation.config import EvaluationConfig
from hgsp.pipeline.config import PruneConfig, ScoreConfig
from hgsp.pipeline.recovery_config import RecoveryConfig

COMMANDS = {
    "run_global_pruning.py": PruneConfig,
    "hgsp score": ScoreConfig,
    "finetune_lora.py": RecoveryConfig,
    "evaluation/run_evaluation.py": EvaluationConfig,
    "hgsp report": ReportConfig,
    "hgsp summarize": SummaryConfig,
    "hgsp profile": ProfileConfig,
}
NOTES = {
    "run_global_pruning.py": "Also `hgsp prune`. `hgsp cut` takes the same flags and requires `--scores`. "
    "`--recipe fast|balanced|best` sets several of them at once ([USAGE.md](../USAGE.md#recipes)).",
    "finetune_lora.py": "Also `hgsp finetune`.",
    "evaluation/run_evaluation.py": "Also `hgsp evaluate`.",
}


def flags_page() -> str:
    """Return the page: one section with one table for every command."""
    parts = [GENERATED, "# Flags"]
    parts.append("A flag given twice takes its last value. Lists are separated by spaces, names of texts by commas.")
    shown: set[str] = set()
    for command, options in COMMANDS.items():
        fields = dataclasses.fields(options)
        known = shown.intersection(field.name for field in fields) if options is ScoreConfig else set()
        parts += [f"## {command}", *([NOTES[command]] if command in NOTES else [])]
        if known:
            parts.append(
                f"As for `run_global_pruning.py`: {', '.join(f'`--{f.name}`' for f in fields if f.name in known)}."
            )
        parts.append(table(("flag", "default", "meaning"), list(rows(f for f in fields if f.name not in known))))
        shown |= {field.name for field in fields}
    return "\n\n".join(parts) + "\n"


def rows(fields: Iterable[Any]) -> Iterator[tuple[str, str, str]]:
    """Yield one row for each flag, required ones first."""
    for field in sorted(fields, key=lambda field: field.default is not dataclasses.MISSING):
        meta = field.metadata
        name = f"`{meta['metavar']}`" if meta.get("positional") else f"`--{field.name}`"
        meaning = meta["help"].replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")
        if choices := meta.get("choices"):
            meaning += f" ({', '.join(f'`{choice}`' for choice in choices)})"
        yield name, shown_default(field.default), meaning


def shown_default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "unset"
    if value is False:
        return "off"
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"
