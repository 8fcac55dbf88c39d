"""Settings of a run as a YAML or JSON file: read by ``--config``, written beside every result."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hgsp
from hgsp.console.json_files import file_bytes, json_object
from hgsp.console.nearest import did_you_mean
from hgsp.console.parser import before_separator, flag_of, presets_of
from hgsp.console.schemas import shortened
from hgsp.environment import write_atomically
from hgsp.errors import InputError, one_line

#: The settings of a run, in its result folder.
RUN_SETTINGS = "run.yaml"
#: Settings have some dozens of short lines.
MAX_BYTES = 2**20


def settings_beside(file: Path) -> Path:
    """Return the place of the settings of a run whose result is one file."""
    return file.with_name(f"{file.stem}.{RUN_SETTINGS}")


def read_settings(path: Path, known: Iterable[str]) -> dict[str, Any]:
    """Read settings by the names of flags; dashes in names are underscores.

    Raises:
        InputError: no such file, broken YAML or JSON, no mapping, or an unknown name.
    """
    try:
        text = file_bytes(path, MAX_BYTES).decode("utf-8")
        content = json_object(text) if path.suffix == ".json" and text.strip() else _yaml_content(text)
        json.dumps(content, default=str, ensure_ascii=False).encode()  # half characters cannot be written again
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise _refused(path, "to be a readable YAML or JSON file", f"'{reason}'", "check the file") from error
    if not isinstance(content, dict):
        raise _refused(path, "to map names of flags to values", type(content).__name__, "write lines of `name: value`")
    names, settings = list(known), {}
    for key, value in content.items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name not in names:
            raise _refused(path, "to have names of flags", shortened(key), did_you_mean(name, names, "see --help"))
        if name in settings:
            raise _refused(path, "to have each name once", name, "keep one of the two")
        settings[name] = value
    return settings


def _yaml_content(text: str) -> Any:
    """Return the content of YAML; an empty text is an empty mapping.

    Raises:
        ValueError: no YAML, aliases, which a short text may nest to any size, or a key twice.
    """
    import yaml

    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            raise ValueError("an alias (*name), which settings do not need")
        node = yaml.compose(text)
        keys = [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if len(set(keys)) < len(keys):
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!a:.80} twice")
        content = yaml.safe_load(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(one_line(error)) from error  # a tag such as !!int before other text raises any of them
    return {} if content is None else content


def as_arguments(options: type, settings: Mapping[str, Any], path: Path) -> tuple[list[str], dict[str, Any]]:
    """Return settings as flags, and apart from them the values of positional arguments. None leaves a flag out.

    Raises:
        InputError: a value that no flag of the name can have.
    """
    arguments = [f"--{name}={settings[name]}" for name in presets_of(options) if settings.get(name) is not None]
    positionals = {}
    for item in dataclasses.fields(options):
        value = settings.get(item.name)
        if value is None:
            continue
        _check_kind(item, value, path)
        if item.metadata.get("positional"):
            positionals[item.name] = value
        elif item.default is False:
            arguments.append(f"--{item.name}" if value else f"--no_{item.name}")
        elif isinstance(value, list):
            arguments += [f"--{item.name}", *map(str, value)]
        else:
            arguments.append(f"--{item.name}={value}")
    return arguments, positionals


def _check_kind(item: Any, value: Any, path: Path) -> None:
    if item.default is False:
        kind, holds = "true or false", isinstance(value, bool)
    elif item.metadata.get("nargs"):
        kind, holds = "a value or a list", not isinstance(value, (bool, dict))
    else:
        kind, holds = "a single value", not isinstance(value, (bool, dict, list))
    if not holds:
        raise _refused(path, f"to have {kind} as {item.name}", shortened(value), "see --help")


def write_settings(options: Any, path: Path, command: str) -> None:
    """Write the settings in force, from which ``--config`` repeats the run."""
    write_mapping({item.name: getattr(options, item.name) for item in recorded_fields(type(options))}, path, command)


def write_mapping(settings: Mapping[str, Any], path: Path, command: str) -> None:
    """Write settings by the names of flags as YAML, after a comment with the command."""
    import yaml

    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    body = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=10**6)
    head = f"# hgsp {hgsp.__version__}; repeat the run with --config and this file\n# {' '.join(command.split())}\n"
    write_atomically(path, head + (body if plain else ""))


def recorded_fields(options: type) -> list[Any]:
    """Return the fields that a repeated run shares: all but secrets and what only the first run needed."""
    fields = dataclasses.fields(options)
    return [item for item in fields if item.metadata.get("recorded", True) and "environment" not in item.metadata]


def command_line(prog: str, arguments: Sequence[str], options: Any) -> str:
    """Return the command of a run for its report: without secrets, and complete without the file of ``--config``."""
    if "--config" in map(flag_of, before_separator(arguments)):
        return shlex.join([*prog.split(), *arguments_of(options)])
    secret = {f"--{item.name}" for item in dataclasses.fields(options) if "environment" in item.metadata}
    return shlex.join([*prog.split(), *without_flags(arguments, secret)])


def without_flags(arguments: Sequence[str], flags: Iterable[str]) -> list[str]:
    """Return the arguments without these flags and their values."""
    kept: list[str] = []
    removed = set(flags)
    words = iter(arguments)
    for word in words:
        if flag_of(word) not in removed:
            kept.append(word)
        elif "=" not in word:
            next(words, None)
    return kept


def arguments_of(options: Any) -> list[str]:
    """Return the flags from which ``parse`` rebuilds ``options``: those that differ from their defaults."""
    positionals: list[str] = []
    arguments: list[str] = []
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        values = [str(part) for part in (value if isinstance(value, tuple) else (value,))]
        if item.metadata.get("positional"):
            positionals += values
        elif value is True:
            arguments.append(f"--{item.name}")
        elif value != item.default:
            arguments += [f"--{item.name}", *values]
    return positionals + arguments


def _refused(path: Path, expected: str, got: str, remedy: str) -> InputError:
    return InputError(expected=f"--config {path} {expected}", got=got, remedy=remedy)
