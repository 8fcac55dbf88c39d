"""Files of resumable state: marked as ours, and checked before anything of them is used or removed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hgsp.console.json_files import file_bytes, json_object
from hgsp.console.schemas import Sha256, checked
from hgsp.environment import remove_folder, siblings_of, write_atomically
from hgsp.errors import InputError

LOG = logging.getLogger(__name__)
T = TypeVar("T")

#: The first key of every state file; its value is the kind of state.
MARKER = "hgsp_state"
#: The end of the name of damaged state, which is never used and never removed.
DAMAGED = ".damaged"


@dataclass(frozen=True)
class _State:
    hgsp_state: str
    sha256: Sha256
    content: dict[str, Any]


def write_state(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write JSON content with its marker and checksum in one step."""
    text = json.dumps(content)
    write_atomically(path, json.dumps({MARKER: kind, "sha256": _sha256(text), "content": json.loads(text)}))


def read_state(path: Path, kind: str, schema: type[T]) -> T | None:
    """Return the content of a state file; None if there is none, or a damaged one, which is set aside.

    A file that is cut short, has another checksum, or does not fit the schema is damaged.

    Raises:
        InputError: the file is not a state of this kind.
    """
    if not path.exists():
        return None
    check_state(path, kind)
    try:
        state = checked(_State, json_object(file_bytes(path)))
        if state.sha256 != _sha256(json.dumps(state.content)):
            raise ValueError("wrong checksum")
        return checked(schema, state.content)
    except ValueError as error:
        set_aside(path, str(error))
        return None


def set_aside(path: Path, reason: str) -> None:
    """Rename a damaged file or folder of state, and say so."""
    aside = path.with_name(f"{path.name}{DAMAGED}")
    if aside.is_dir():
        remove_folder(aside)
    path.replace(aside)
    LOG.warning("%s is damaged (%s); set aside as %s, starting again", path, reason, aside.name)


def check_state(path: Path, kind: str) -> None:
    """Refuse a file where state would be kept that is no state of this kind.

    Raises:
        InputError: it lacks the marker.
    """
    beginning = json.dumps({MARKER: kind})[:-1]
    if path.exists() and not _begins_with(path, beginning):
        raise InputError(
            expected=f"nothing at {path} but the state of an interrupted {kind}",
            got="something else",
            remedy="use another name for the result, or move it away",
        )


def check_state_folder(folder: Path, file_name: str, kind: str) -> None:
    """Refuse a folder where state would be kept that has other content, so that it is never removed.

    Raises:
        InputError: a folder with content but no state file, or a file.
    """
    if folder.is_dir() and all(siblings_of(file_name).fullmatch(path.name) for path in folder.iterdir()):
        return  # a run was killed between making the folder and finishing its file
    named = (folder / file_name, folder / f"{file_name}{DAMAGED}")
    check_state(next((path for path in named if path.is_file()), folder), kind)


def _begins_with(path: Path, beginning: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as source:
        return source.read(len(beginning)) == beginning.encode()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
