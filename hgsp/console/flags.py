"""Dataclasses as command lines: every field is a flag, its metadata holds the help text.

Importing this file costs no torch: ``--help`` is quick.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, TypeVar

from hgsp.errors import InputError

Options = TypeVar("Options")


def option(default: Any = dataclasses.MISSING, *, help: str, **argument: Any) -> Any:
    """A field that is a flag, or with ``positional`` an argument without one.

    ``argument`` goes to ``add_argument``; without a default the flag is required.
    """
    return field(default=default, metadata={"help": help, **argument})


def parse(options: type[Options], argv: Sequence[str] | None, *, prog: str | None, description: str) -> Options:
    """Build the dataclass from the command line. A flag given twice takes its last value; argparse exits with 2."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    recipes: Mapping[str, Mapping[str, Any]] = getattr(options, "RECIPES", {})
    if recipes:
        parser.add_argument("--recipe", choices=recipes, help=_explained(recipes))
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
    recipe = given.pop("recipe", None)
    if recipe is not None:
        parser.set_defaults(**recipes[recipe])  # flags that were given win
        given = vars(parser.parse_args(argv))
        given.pop("recipe")
    return options(**given)


def arguments_of(options: Any) -> list[str]:
    """The flags that ``parse`` makes the same dataclass from: those that differ from their defaults."""
    arguments: list[str] = []
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        if value is True:
            arguments.append(f"--{item.name}")
        elif value != item.default:
            arguments += [f"--{item.name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return arguments


def _explained(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    settings = {
        name: " ".join(f"--{flag} {value}" for flag, value in recipe.items()) for name, recipe in recipes.items()
    }
    return "; ".join(f"{name} = {flags}" for name, flags in settings.items()) + "; flags given beside it win"


def require(holds: bool, flag: str, expected: str, got: object, remedy: str = "see --help") -> None:
    """Refuse a value.

    Raises:
        InputError: if it does not hold.
    """
    if not holds:
        raise InputError(expected=f"{flag} to be {expected}", got=repr(got), remedy=remedy)


def require_counts(options: Any, *names: str) -> None:
    """Refuse fields below 1."""
    for name in names:
        require(getattr(options, name) >= 1, f"--{name}", "at least 1", getattr(options, name))


def nearest_multiples(value: int, of: int) -> str:
    """The remedy where a value is no multiple."""
    below = value // of * of
    return f"the nearest are {below} or {below + of}" if below else f"the nearest is {of}"


def require_positive(options: Any, *names: str) -> None:
    """Refuse fields that are not finite numbers above 0."""
    for name in names:
        value = getattr(options, name)
        require(math.isfinite(value) and value > 0, f"--{name}", "a finite number > 0", value)
