"""JSON files of our own, read as objects of a schema: the one gate for everything that a command wrote before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from hgsp.console.schemas import SchemaError, checked, shortened
from hgsp.errors import InputError, one_line

T = TypeVar("T")

#: Larger files are refused unread: the plan of a model of 100 billion parameters takes 20 MB.
MAX_FILE_BYTES = 2**28
#: Levels of objects and lists in each other. Our files have five; the interpreter's own limit is no safe one.
MAX_DEPTH = 40
_MAX_INT = 2**63 - 1
_MAX_FLOAT = 1e300  # sums and axes of such numbers stay finite


def read_json_file(path: Path, schema: type[T], expected: str, remedy: str) -> T:
    """Read a JSON file as an object of a schema.

    Args:
        expected: the kind of file, for the message.
        remedy: advice to the user, such as the file to delete.

    Raises:
        InputError: no such file, no JSON, or another content; names file, field, expected and got.
    """
    try:
        return checked(schema, json_object(file_bytes(path)))
    except InputError as error:  # of a dataclass whose parts do not belong together
        reason: Exception = ValueError(f"expected {error.expected}; got {error.got}")
    except ValueError as error:
        reason = error
    raise InputError(expected=expected, got=f"{path} ({one_line(reason)})", remedy=remedy) from reason


def file_bytes(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a file of reasonable size.

    Raises:
        ValueError: a folder, pipe or device, no such file, or too many bytes.
    """
    if not path.exists():
        raise ValueError("no such file")
    if not path.is_file():
        raise ValueError("no plain file")
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{size:,} bytes, more than {most:,}")
    return path.read_bytes()


def json_object(content: bytes | str) -> dict[str, Any]:
    """Parse strict JSON with an object at its top: no NaN, no key twice, no half characters, no bottomless nesting.

    Raises:
        ValueError: anything else.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    if not text.strip():
        raise ValueError("an empty file")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=unique_keys)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_json(value, MAX_DEPTH)
    if not isinstance(value, dict):
        raise SchemaError("an object", value)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is not JSON")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs, for ``json.loads``.

    Raises:
        ValueError: a key is there twice.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shortened(double)} twice in one object")
    return content


def _check_json(value: Any, depth: int) -> None:
    """Refuse strings that cannot be written again, numbers out of range, and nesting below a depth."""
    if isinstance(value, str):
        if not value.isascii():
            value.encode()
    elif isinstance(value, float):
        if not abs(value) <= _MAX_FLOAT:
            raise ValueError("a number out of range")
    elif isinstance(value, int):
        if abs(value) > _MAX_INT:
            raise ValueError("an integer out of range")
    elif value is not None:
        if depth == 0:
            raise ValueError("nested too deeply")
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_json(part, depth - 1)
