"""Dataclasses as command lines: every field is a flag, its metadata holds the help text.

Does not import torch, so ``--help`` is fast.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

from hgsp.console.parser import Parser, add_config, add_preset, before_separator, parser_of, presets_of
from hgsp.console.settings_file import arguments_of, as_arguments, read_settings
from hgsp.errors import InputError

__all__ = [
    "arguments_of",
    "byte_count",
    "given_settings",
    "nearest_multiples",
    "option",
    "parse",
    "parse_known",
    "require",
    "require_counts",
    "require_positive",
]

Options = TypeVar("Options")


def option(default: Any = dataclasses.MISSING, *, help: str, **argument: Any) -> Any:
    """Declare a field that is a flag, or a positional argument if ``positional=True``.

    ``argument`` is passed to ``add_argument``, except for ``group`` (title on the help page; by default the class's
    ``GROUP``), ``range`` (accepted values, in words), ``recorded=False`` (left out of the settings of a run) and
    ``environment`` (the variable that a secret goes to). A flag without a default is required.
    """
    return field(default=default, metadata={"help": help, **argument})


def parse(options: type[Options], argv: Sequence[str] | None, *, prog: str | None, description: str) -> Options:
    """Build the dataclass from the command line and the file of ``--config``; a usage error exits with 2.

    In increasing precedence: defaults, presets of the file, the file, presets of the command line, its flags. The last
    of repeated flags wins. A secret goes to its environment variable and not into the dataclass.

    Raises:
        InputError: a value that makes no sense, or an unusable file.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    layers, positionals = _layers(options, arguments, prog)
    parser = parser_of(options, prog, description, positionals=positionals)
    return _built(options, vars(parser.parse_args([*layers, *arguments])))


def parse_known(
    options: type[Options], others: type, argv: Sequence[str], *, prog: str, description: str, usage: str
) -> tuple[Options, list[str]]:
    """Build the dataclass and return the arguments that belong to the options class ``others``, unread.

    Raises:
        InputError: as ``parse``.
    """
    file = _found(options, argv, prog)["config"]
    own_layer, others_layer = [], []
    if file is not None:
        path, own = Path(file), {item.name for item in dataclasses.fields(options)}  # type: ignore[arg-type]
        settings = read_settings(path, own | set(_names(others)))
        own_layer = as_arguments(options, {name: settings[name] for name in settings if name in own}, path)[0]
        others_layer = as_arguments(others, {name: settings[name] for name in settings if name not in own}, path)[0]
    before = before_separator(argv)
    parser = parser_of(options, prog, description, usage=usage)
    parser.refuse_unknown(before, parser_of(others, prog, ""))
    given, passed = parser.parse_known_args([*own_layer, *before])
    return _built(options, vars(given)), [*others_layer, *passed, *argv[len(before) + 1 :]]


def given_settings(options: type, arguments: Sequence[str], prog: str) -> dict[str, Any]:
    """Return only the settings that are on a command line, by name, with those of presets."""
    layers, _ = _layers(options, arguments, prog)
    given = vars(parser_of(options, prog, "", all_optional=True).parse_args([*layers, *arguments]))
    return {name: value for name, value in given.items() if name not in ("config", *presets_of(options))}


def _layers(options: type, arguments: Sequence[str], prog: str | None) -> tuple[list[str], dict[str, Any]]:
    """Return the flags that a command line stands for besides its own, and positional arguments from the file."""
    found = _found(options, arguments, prog)
    layers: list[str] = []
    positionals: dict[str, Any] = {}
    if found["config"] is not None:
        path = Path(found["config"])
        settings = read_settings(path, _names(options))
        from_file, positionals = as_arguments(options, settings, path)
        layers = [*_preset_flags(options, _found(options, from_file, prog)), *from_file]
        layers.append(f"--config={path}")  # ends a list, which would take a positional argument as its next value
    return [*layers, *_preset_flags(options, found)], positionals


def _found(options: type, arguments: Sequence[str], prog: str | None) -> dict[str, Any]:
    """Return ``--config`` and the presets on a command line.

    Raises:
        InputError: an argument that is no text, which most libraries cannot open a file by.
    """
    for word in map(str, arguments):
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise InputError(expected="arguments in UTF-8", got=ascii(word), remedy="rename the file or folder")
    finder = Parser(prog=prog, description="")
    add_config(finder)
    for name, choices in presets_of(options).items():
        add_preset(finder, name, choices)
    finder.shown_flags += ["--config", *(f"--{name}" for name in presets_of(options))]
    return vars(finder.parse_known_args(before_separator(arguments))[0])


def _preset_flags(options: type, found: Mapping[str, Any]) -> list[str]:
    chosen = [choices[found[name]] for name, choices in presets_of(options).items() if found[name] is not None]
    values = [(flag, value) for settings in chosen for flag, value in settings.items()]
    return [f"--{flag}" if value is True else f"--{flag}={value}" for flag, value in values]


def _names(options: type) -> list[str]:
    return [*(item.name for item in dataclasses.fields(options)), *presets_of(options)]


def _built(options: type[Options], given: Mapping[str, Any]) -> Options:
    values = {item.name: given[item.name] for item in dataclasses.fields(options)}  # type: ignore[arg-type]
    for item in dataclasses.fields(options):  # type: ignore[arg-type]
        if (variable := item.metadata.get("environment")) and values[item.name] is not None:
            os.environ[variable] = values[item.name]
            values[item.name] = None
    return options(**values)


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
