"""Rows of local files, each with its place: JSON lists, JSON lines, CSV, TSV and parquet. The only reader of rows."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hgsp.console.json_files import unique_keys
from hgsp.data.fields import Row, short
from hgsp.data.files import UNREADABLE, is_file, numbered_lines, opened, refuse_beyond_limits, too_long, unreadable
from hgsp.environment import install_command
from hgsp.errors import InputError

#: Bytes or characters of one row.
MAX_ROW = 1 << 26
#: Suffixes of files that are text whatever is in them.
TEXT_SUFFIXES = {".txt", ".text", ".md", ".raw"}
_BATCH = 256
_SPACE = re.compile(r"[ \t\n\r]*")


def is_plain(path: Path) -> bool:
    """Return whether a file is named as plain text rather than as rows."""
    return _reader(path) is None


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a .json (a list, or one object per line), .jsonl, .csv, .tsv or .parquet file, gzipped or not.

    Raises:
        InputError: the file does not hold rows, or pyarrow is not installed; names file and line.
    """
    reader = _reader(path)
    if reader is None:
        raise InputError(
            expected="a file of rows (.json, .jsonl, .csv, .tsv or .parquet)",
            got=str(path),
            remedy="name it as what it is",
        )
    return list(reader(path, None))


def text_rows(path: Path, newline: str | None) -> Iterator[str]:
    """Yield the texts of a file of rows, or the lines of any other; ``newline`` is that of ``open``.

    Raises:
        InputError: the file holds neither text nor rows with one, or pyarrow is not installed; names file and line.
    """
    reader = _reader(path)
    if reader is not None:
        for row in reader(path, ["text"]):
            yield row.text("text")
        return
    with opened(path) as stream:
        for number, line in numbered_lines(path, stream, newline):
            if number == 1:
                _refuse_disguised_rows(path, line)
            yield line


def _json_rows(path: Path, columns: list[str] | None) -> Iterator[Row]:
    with opened(path) as stream:
        if stream.peek().removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            text = "".join(line for _, line in numbered_lines(path, stream, None))
            yield from _rows_of_list(path, text)
            return
        parse = partial(json.loads, object_pairs_hook=unique_keys)
        for number, line in numbered_lines(path, stream, None, MAX_ROW):
            if line.strip():
                yield _row_of(_guarded(partial(parse, line), path, number), path, number)


def _rows_of_list(path: Path, text: str) -> Iterator[Row]:
    """Parse a JSON list item by item, which gives the line of each."""
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
    position, line, counted = _after_space(text, text.index("[") + 1), 1, 0
    ends = text.startswith("]", position)
    while not ends:
        line, counted = line + text.count("\n", counted, position), position
        value, position = _guarded(partial(decoder.raw_decode, text, position), path, line)
        if position - counted > MAX_ROW:
            raise too_long(path, line, MAX_ROW)
        yield _row_of(value, path, line)
        position = _after_space(text, position)
        ends = text.startswith("]", position)
        if not ends and not text.startswith(",", position):
            raise _no_json(path, line + text.count("\n", counted, position), "expected ',' or ']' after a row")
        position = position if ends else _after_space(text, position + 1)
    position = _after_space(text, position + 1)
    if position < len(text):
        raise _no_json(path, 1 + text.count("\n", 0, position), "more after the end of the list")


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None  # it matches nothing as well
    return found.end()


def _guarded(parse: Callable[[], Any], path: Path, number: int) -> Any:
    """Call a JSON parser for a row that begins in line ``number``."""
    try:
        return parse()
    except json.JSONDecodeError as error:
        raise _no_json(path, max(number, error.lineno), error.msg) from error
    except RecursionError as error:
        raise _no_json(path, number, "nested too deeply") from error
    except ValueError as error:  # a key twice, or a number of thousands of digits
        raise _no_json(path, number, " ".join(str(error).split())) from error


def _no_json(path: Path, number: int, reason: str) -> InputError:
    return InputError(
        expected="rows in JSON: one object per line, or one list of objects",
        got=f"none in {path}, line {number} ({reason})",
        remedy="correct or remove the line, or name the file .txt if it is plain text",
    )


def _row_of(value: Any, path: Path, number: int) -> Row:
    if not isinstance(value, dict):
        raise InputError(
            expected="a JSON object in every row",
            got=f"{short(value)}, in {path}, line {number}",
            remedy="correct or remove the row",
        )
    return Row(value, f"{path}, line {number}")


def _table_rows(path: Path, columns: list[str] | None, *, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a CSV file whose first row names the columns; blank lines are skipped."""
    limit = csv.field_size_limit(MAX_ROW)
    try:
        with opened(path) as stream:
            lines = (line for _, line in numbered_lines(path, stream, ""))
            yield from _records(csv.reader(lines, delimiter=delimiter, strict=True), path)
    finally:
        csv.field_size_limit(limit)


def _records(reader: Any, path: Path) -> Iterator[Row]:
    header: list[str] | None = None
    number = 1
    try:
        for cells in reader:
            if header is None and cells:
                header = cells
                if len(set(header)) < len(header):
                    raise ValueError("a column twice in the header")
            elif header is not None and cells:
                if len(cells) != len(header):
                    raise ValueError(f"{len(cells)} cells under a header of {len(header)}")
                yield Row(dict(zip(header, cells, strict=True)), f"{path}, line {number}")
            number = reader.line_num + 1
    except InputError:
        raise
    except (csv.Error, ValueError) as error:
        raise InputError(
            expected="a table with a header of column names and as many cells in every row",
            got=f"{error}, in {path}, line {number}",
            remedy="correct the row and its quotes",
        ) from error


def _parquet_rows(path: Path, columns: list[str] | None) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise InputError(
            expected="pyarrow, to read .parquet files", got=str(error), remedy=install_command("data")
        ) from error
    number = num_bytes = 0
    try:
        if not is_file(path):
            raise FileNotFoundError("no such file")
        with parquet.ParquetFile(path) as source:
            known = source.schema_arrow.names
            if len(set(known)) < len(known):
                raise ValueError("a column twice")
            wanted = None if columns is None or not set(columns) <= set(known) else columns
            for batch in source.iter_batches(_BATCH, columns=wanted):
                num_bytes += batch.nbytes
                refuse_beyond_limits(path, num_bytes, path.stat().st_size)
                for row in batch.to_pylist():
                    number += 1
                    yield Row(row, f"{path}, row {number}")
    except InputError:
        raise
    except (ArrowException, *UNREADABLE) as error:
        raise unreadable(path, error, f"rows in parquet (after row {number})") from error


def _refuse_disguised_rows(path: Path, line: str) -> None:
    """Refuse JSON rows in a file that is named neither as rows nor as text: they would be taken as plain text."""
    if TEXT_SUFFIXES & {suffix.lower() for suffix in path.suffixes} or not line.lstrip().startswith(('{"', '[{"')):
        return
    raise InputError(
        expected=f"a plain text in {path}",
        got="rows in JSON",
        remedy="name it .jsonl to have its rows read, or .txt to have it read as plain text",
    )


Reader = Callable[[Path, "list[str] | None"], Iterator[Row]]

#: Suffix, in lower case -> reader of the file's rows; of several suffixes the last known one decides.
READERS: Mapping[str, Reader] = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson", ".jsonlines"), _json_rows),
    ".csv": partial(_table_rows, delimiter=","),
    **dict.fromkeys((".tsv", ".tab"), partial(_table_rows, delimiter="\t")),
    ".parquet": _parquet_rows,
}


def _reader(path: Path) -> Reader | None:
    known = [suffix.lower() for suffix in path.suffixes if suffix.lower() in {*READERS, *TEXT_SUFFIXES}]
    return READERS.get(known[-1]) if known else None
