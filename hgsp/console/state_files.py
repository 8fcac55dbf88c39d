"""Files of resumable state: marked as ours, and checked before anything of them is used or removed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgsp.environment import write_atomically
from hgsp.errors import InputError

LOG = logging.getLogger(__name__)

#: The first key of every state file; its value is the kind of state.
MARKER = "hgsp_state"


def write_state(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write JSON content with its marker and checksum in one step."""
    text = json.dumps(content)
    write_atomically(path, json.dumps({MARKER: kind, "sha256": _sha256(text), "content": json.loads(text)}))


def read_state(path: Path, kind: str) -> dict[str, Any] | None:
    """Return the content of a state file; None if there is none, or a damaged one, which is set aside.

    Raises:
        InputError: the file is not a state of this kind.
    """
    if not path.exists():
        return None
    check_state(path, kind)
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["sha256"] != _sha256(json.dumps(state["content"])):
            raise ValueError("wrong checksum")
        return dict(state["content"])
    except (ValueError, KeyError, TypeError) as error:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        LOG.warning("%s is damaged (%s); set aside as %s, starting again", path, error, aside.name)
        return None


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
    if folder.is_dir() and not any(folder.iterdir()):
        return  # a run was killed between making the folder and its file
    check_state(folder / file_name if (folder / file_name).is_file() else folder, kind)


def _begins_with(path: Path, beginning: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as source:
        return source.read(len(beginning)) == beginning.encode()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
