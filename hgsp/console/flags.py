"""Dataclasses as command lines: every field is a flag, its metadata holds the help text.

Does not import torch, so ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, TypeVar

from hgsp.errors import InputError

Options = TypeVar("Options")


def option(default: Any = dataclasses.MISSING, *, help: str, **argument: Any) -> Any:
    """Declare a field that is a flag, or a positional argument if ``positional=True``.

    ``argument`` is passed to ``add_argument``. A flag without a default is required.
    """
    return field(default=default, metadata={"help": help, **argument})


def parse(options: type[Options], argv: Sequence[str] | None, *, prog: str | None, description: str) -> Options:
    """Build the dataclass from the command line. The last of repeated flags wins; argparse exits with 2 on errors."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]] = getattr(options, "PRESETS", {})
    for name, settings in presets.items():
        parser.add_argument(f"--{name}", choices=settings, help=_preset_help(settings))
    for item in dataclasses.fields(options):  # type: ignore[arg-type]
        argument = dict(item.metadata)
        if argument.pop("positional", False):
            parser.add_argument(item.name, **argument)
            continue
        if item.default is dataclasses.MISSING:
            argument["required"] = True
        elif item.default is False:
            argument["action"] = "store_true"
        else:
            argument["default"] = item.default
        parser.add_argument(f"--{item.name}", **argument)
    given = vars(parser.parse_args(argv))
    chosen = [(settings, given[name]) for name, settings in presets.items() if given[name] is not None]
    if chosen:
        for settings, choice in chosen:
            parser.set_defaults(**settings[choice])  # explicit flags win
        given = vars(parser.parse_args(argv))
    for name in presets:
        del given[name]
    return options(**given)


def arguments_of(options: Any) -> list[str]:
    """Return the flags from which ``parse`` rebuilds ``options``: those that differ from their defaults."""
    arguments: list[str] = []
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if value is True:
            arguments.append(f"--{item.name}")
        elif value != item.default:
            arguments += [f"--{item.name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return arguments


def _preset_help(presets: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the flags that each preset stands for; a switch has no value."""
    settings = {
        name: " ".join(f"--{flag}" if value is True else f"--{flag} {value}" for flag, value in preset.items())
        for name, preset in presets.items()
    }
    return "; ".join(f"{name} = {flags}" for name, flags in settings.items()) + "; explicit flags take precedence"


def byte_count(text: str) -> int:
    """Parse a number of bytes such as 4096, 64KiB or 5GB; argparse turns a ValueError into its message."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+) *(?:([kmgt])(i?))?b?", text.strip().lower())
    if match is None:
        raise ValueError(text)
    number, prefix, binary = match.groups()
    power = " kmgt".index(prefix) if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)


def require(holds: bool, flag: str, expected: str, got: object, remedy: str = "see --help") -> None:
    """Refuse the value of a flag unless the condition ``holds``.

    Raises:
        InputError: if it does not.
    """
    if not holds:
        raise InputError(expected=f"{flag} to be {expected}", got=repr(got), remedy=remedy)


def require_counts(options: Any, *names: str) -> None:
    """Refuse fields below 1.

    Raises:
        InputError: names the first such flag.
    """
    for name in names:
        require(getattr(options, name) >= 1, f"--{name}", "at least 1", getattr(options, name))


def nearest_multiples(value: int, of: int) -> str:
    """Name the multiples of ``of`` around ``value``, as the remedy of an error."""
    below = value // of * of
    return f"the nearest are {below} or {below + of}" if below else f"the nearest is {of}"


def require_positive(options: Any, *names: str) -> None:
    """Refuse fields that are not finite numbers above 0.

    Raises:
        InputError: names the first such flag.
    """
    for name in names:
        value = getattr(options, name)
        require(math.isfinite(value) and value > 0, f"--{name}", "a finite number > 0", value)
