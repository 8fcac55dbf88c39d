"""Paths in reports, without the absolute paths of the machine that wrote them.

Paths are relative to the folder in which the command was started, so that it can be repeated from there. What shares no
folder with it is below the home folder (``~/...``), or has its last name alone; ``run.yaml`` and ``logs/training.log``
have paths as they were given.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Keys whose text is a model's own, or a command line.
_SAMPLES, _COMMAND = "samples", "command"
_START = re.compile(r"(?<![\w.~/\\:-])(?:/|[A-Za-z]:[\\/])(?=[^\s/\\])")
_END = re.compile(r"[\s'\",;:()]|$")


def portable_path(path: str, start: Path | None = None) -> str:
    """Return an absolute path as one that says nothing of the machine, anything else unchanged.

    Args:
        start: the folder that it becomes relative to; None is the current one.
    """
    if not Path(path).is_absolute():
        return path
    place, start = Path(os.path.normpath(path)), Path.cwd() if start is None else start.absolute()
    if _shared_parts(place, start) > 1:
        return Path(os.path.relpath(place, start)).as_posix()
    if _shared_parts(place, Path.home()) == len(Path.home().parts) > 1:
        return f"~/{place.relative_to(Path.home()).as_posix()}"
    return place.name or path


def portable_command(command: str) -> str:
    """Return a shell command with portable paths; ``~`` stays unquoted, so that the shell expands it."""
    return " ".join(_quoted(_portable_argument(part)) for part in shlex.split(command))


def portable(content: Any) -> Any:
    """Return what a report holds with portable paths in all of its strings but samples of models."""
    if isinstance(content, Mapping):
        return {portable_path(key): _portable_entry(key, value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [portable(value) for value in content]
    return portable_text(content) if isinstance(content, str) else content


def portable_text(text: str) -> str:
    """Return a text with portable paths for the absolute ones in it that exist on this machine."""
    if Path(text).is_absolute() and _exists(text):
        return portable_path(text)
    done, pieces = 0, []
    for start, end in _paths_in(text):
        pieces += [text[done:start], portable_path(text[start:end])]
        done = end
    return "".join([*pieces, text[done:]])


def _portable_entry(key: str, value: Any) -> Any:
    if key == _SAMPLES:
        return value
    return portable_command(value) if key == _COMMAND and isinstance(value, str) else portable(value)


def _portable_argument(argument: str) -> str:
    """Return an argument with portable paths: a path, a comma list with some, or either after ``--flag=``."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return flag + equals + ",".join(map(portable_path, value.split(",")))


def _quoted(argument: str) -> str:
    return f"~/{shlex.quote(argument[2:])}" if argument.startswith("~/") else shlex.quote(argument)


def _shared_parts(one: Path, other: Path) -> int:
    """Return how many leading parts two absolute paths share; the root is one."""
    return len(Path(os.path.commonpath([one, other])).parts) if one.anchor == other.anchor else 0


def _paths_in(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of absolute paths that exist, or whose folder does; a path may have spaces."""
    done = 0
    for found in _START.finditer(text):
        if found.start() < done:
            continue
        ends = [end.start() for end in _END.finditer(text, found.end())]
        whole = (end for end in reversed(ends) if _exists(text[found.start() : end]))
        folder = Path(text[found.start() : ends[0]]).parent
        end = next(whole, ends[0] if folder != Path(folder.anchor) and _exists(str(folder)) else None)
        if end is not None:
            done = end
            yield found.start(), end


def _exists(path: str) -> bool:
    try:
        return os.access(path, os.F_OK)  # Path.exists raises for a text that is too long for a path
    except ValueError:  # a null byte, or a character that no path can have
        return False
