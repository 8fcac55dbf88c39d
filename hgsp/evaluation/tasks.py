"""Names of tasks and their aliases. Importing this file costs no torch."""

from __future__ import annotations

import difflib

from hgsp.console.report_schema import LAMBADA
from hgsp.data.files import kind_of
from hgsp.data.texts import DATASET_CHOICES, dataset_names
from hgsp.errors import InputError

TEXTS = tuple(DATASET_CHOICES)
ZERO_SHOT = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
EFFICIENCY = "efficiency"
TASKS = (*TEXTS, LAMBADA, *ZERO_SHOT, EFFICIENCY)

ALIASES = {
    "wikitext": ("wikitext2",),
    "lambada_openai": (LAMBADA,),
    "arc_e": ("arc_easy",),
    "arc_c": ("arc_challenge",),
    "obqa": ("openbookqa",),
    "zeroshot": ZERO_SHOT,
}


def parse_tasks(names: str) -> tuple[str, ...]:
    """Return the task names of a comma list, aliases resolved, each once, in the order given.

    Raises:
        InputError: an empty list, or an unknown name; the message suggests similar ones.
    """
    tasks: dict[str, None] = {}
    for name in filter(None, dataset_names(names)):
        lowered = name.lower().replace("-", "_")
        if lowered in ALIASES:
            tasks.update(dict.fromkeys(ALIASES[lowered]))
        elif lowered in TASKS:
            tasks[lowered] = None
        elif kind_of(name) == "file":
            tasks[name] = None
        else:
            raise _unknown(name)
    if not tasks:
        raise InputError(expected="--tasks to name a task", got=repr(names), remedy=f"choose from {_choices()}")
    return tuple(tasks)


def is_text(task: str) -> bool:
    """Return whether a task is the perplexity of a text: a named one or a file."""
    return task in TEXTS or task not in TASKS


def _unknown(name: str) -> InputError:
    near = difflib.get_close_matches(name.lower(), [*TASKS, *ALIASES], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "check the spelling"
    return InputError(expected=f"--tasks from {_choices()}, or a text file", got=f"unknown task '{name}'", remedy=hint)


def _choices() -> str:
    return ", ".join([*TASKS, *ALIASES])
