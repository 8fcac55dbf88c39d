"""Users' files of text and of rows: plain text, JSON lists, JSON lines and parquet, gzipped or not."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from hgsp.errors import InputError

#: What reading a file raises that is damaged or holds something else.
UNREADABLE = (EOFError, LookupError, OSError, TypeError, ValueError, zlib.error)


def is_plain(path: Path) -> bool:
    """Whether a file is text rather than rows."""
    return not {".jsonl", ".json", ".parquet"} & set(path.suffixes)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .json (a list, or one object per line), .jsonl or .parquet file, gzipped or not.

    Raises:
        InputError: the file does not hold rows.
    """
    try:
        rows = list(_objects_in(path, None))
        for row in rows:
            if not isinstance(row, dict):
                raise TypeError(f"a row is {row!r:.40}")
        return rows
    except UNREADABLE as error:
        raise not_rows(path, "rows (JSON objects or parquet)", error, "convert the file, or fetch it again") from error
    except ImportError as error:
        raise _no_parquet(error) from error


def text_rows(path: Path, newline: str | None) -> Iterator[str]:
    """Rows of a plain text (its lines, with ends as ``newline`` of ``open`` says), .json(l)(.gz) or .parquet file.

    Raises:
        InputError: it is damaged or holds something else.
    """
    try:
        for row in _raw_rows_of(path, newline):
            if not isinstance(row, str):
                raise TypeError(f"a row's text is {row!r:.40}")
            yield row
    except UNREADABLE as error:
        expected = "UTF-8 text, or rows with a 'text' field (JSON or parquet)"
        raise not_rows(path, expected, error, "convert the file or rename it to .txt") from error
    except ImportError as error:
        raise _no_parquet(error) from error


def _raw_rows_of(path: Path, newline: str | None) -> Iterator[Any]:
    if is_plain(path):
        with _opened(path, newline) as lines:
            yield from lines
    else:
        for row in _objects_in(path, ["text"]):
            yield row["text"]


def _objects_in(path: Path, columns: list[str] | None) -> Iterator[Any]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        yield from parquet.read_table(path, columns=columns).to_pylist()
        return
    with _opened(path) as lines:
        first = next((line for line in lines if line.strip()), "")
        if first.lstrip().startswith("["):  # one JSON list rather than one object per line
            yield from json.loads(first + lines.read())
            return
        for line in chain([first], lines):
            if line.strip():
                yield json.loads(line)


def _opened(path: Path, newline: str | None = None) -> Any:
    """An open text file; what Windows programs put in front of UTF-8, a byte order mark, is left out."""
    loaded: Any = gzip.open if path.suffix == ".gz" else Path.open
    return loaded(path, "rt", encoding="utf-8-sig", newline=newline)


def not_rows(path: Path, expected: str, error: Exception, remedy: str) -> InputError:
    """The refusal of a file that could not be read as what it should be."""
    return InputError(
        expected=f"{path} to hold {expected}",
        got=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
        remedy=remedy,
    )


def _no_parquet(error: ImportError) -> InputError:
    return InputError(
        expected="the package that reads .parquet files", got=str(error), remedy="pip install 'hgsp[data]'"
    )
