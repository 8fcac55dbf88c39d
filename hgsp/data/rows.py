"""Local text and row files: plain text, JSON lists, JSON lines and parquet, gzipped or not."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from hgsp.environment import install_command
from hgsp.errors import InputError

#: Errors raised when a file is damaged or is not in the expected format.
UNREADABLE = (EOFError, LookupError, OSError, TypeError, ValueError, zlib.error)


def is_plain(path: Path) -> bool:
    """Return whether a file is plain text rather than rows."""
    return not {".jsonl", ".json", ".parquet"} & set(path.suffixes)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a .json (a list, or one object per line), .jsonl or .parquet file, gzipped or not.

    Raises:
        InputError: the file does not hold rows, or pyarrow is not installed.
    """
    try:
        rows = list(_json_or_parquet_rows(path, None))
        for row in rows:
            if not isinstance(row, dict):
                raise TypeError(f"a row is {row!r:.40}")
        return rows
    except UNREADABLE as error:
        raise not_rows(path, "rows (JSON objects or parquet)", error, "convert it, or download it again") from error
    except ImportError as error:
        raise _no_parquet(error) from error


def text_rows(path: Path, newline: str | None) -> Iterator[str]:
    """Yield the texts of a .json(l)(.gz) or .parquet file, or the lines of any other; ``newline`` is that of ``open``.

    Raises:
        InputError: the file holds neither text nor rows with one, or pyarrow is not installed.
    """
    try:
        for row in _unchecked_texts(path, newline):
            if not isinstance(row, str):
                raise TypeError(f"a row's text is {row!r:.40}")
            yield row
    except UNREADABLE as error:
        expected = "UTF-8 text, or rows with a 'text' field (JSON or parquet)"
        raise not_rows(path, expected, error, "convert the file or rename it to .txt") from error
    except ImportError as error:
        raise _no_parquet(error) from error


def _unchecked_texts(path: Path, newline: str | None) -> Iterator[Any]:
    if is_plain(path):
        with _open_text(path, newline) as lines:
            yield from lines
    else:
        for row in _json_or_parquet_rows(path, ["text"]):
            yield row["text"]


def _json_or_parquet_rows(path: Path, columns: list[str] | None) -> Iterator[Any]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        yield from parquet.read_table(path, columns=columns).to_pylist()
        return
    with _open_text(path) as lines:
        first = next((line for line in lines if line.strip()), "")
        if first.lstrip().startswith("["):  # one JSON list rather than one object per line
            yield from json.loads(first + lines.read())
            return
        for line in chain([first], lines):
            if line.strip():
                yield json.loads(line)


def _open_text(path: Path, newline: str | None = None) -> Any:
    """Open a UTF-8 text file, dropping the byte order mark that Windows programs write."""
    open_file: Any = gzip.open if path.suffix == ".gz" else Path.open
    return open_file(path, "rt", encoding="utf-8-sig", newline=newline)


def not_rows(path: Path, expected: str, error: Exception, remedy: str) -> InputError:
    """Build the error for a file that does not hold ``expected``."""
    return InputError(
        expected=f"{path} to hold {expected}",
        got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        remedy=remedy,
    )


def _no_parquet(error: ImportError) -> InputError:
    return InputError(expected="pyarrow, to read .parquet files", got=str(error), remedy=install_command("data"))
