"""Text files of users, gzipped or not, read line by line within limits."""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgsp.errors import InputError, one_line

if TYPE_CHECKING:
    Stream = io.BufferedReader[Any]
else:  # generic for type checkers alone
    Stream = io.BufferedReader

#: Bytes of text that are read from one file, decompressed.
MAX_BYTES = 1 << 34
#: Bytes of text per byte of a compressed file, counted once a text is longer than ``UNLIMITED_BYTES``. Prose reaches 4
#: and repetitive logs 50.
MAX_RATIO, UNLIMITED_BYTES = 200, 1 << 26
_BUFFER = 1 << 20

#: First bytes -> kind of file that is neither text nor rows.
FOREIGN = {
    b"PK\x03\x04": "a zip archive or an office document",
    b"\x1f\x8b": "gzip data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"\xfd7zXZ\0": "xz data",
    b"BZh91AY&SY": "bzip2 data",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"PAR1": "parquet data",
    b"%PDF-": "a PDF document",
    b"\xff\xfe": "UTF-16 or UTF-32 text",
    b"\xfe\xff": "UTF-16 text",
    b"\0\0\xfe\xff": "UTF-32 text",
}
#: Errors raised when a file is damaged or is not in the expected format.
UNREADABLE = (EOFError, LookupError, OSError, OverflowError, TypeError, ValueError, zlib.error)


def kind_of(path: str | Path) -> str | None:
    """Return "file", or in words anything else of that name, None without one; a name may be too long for a path."""
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "a link to nothing" if Path(path).is_symlink() else None
    except PermissionError:
        return "a file in a folder without permission to enter"
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return "file"
    return "a folder" if stat.S_ISDIR(mode) else "a pipe or device"


def is_file(path: str | Path) -> bool:
    """Return whether a path is a regular file.

    Raises:
        InputError: something else has that name: a folder, pipe or device, or a link to nothing.
    """
    kind = kind_of(path)
    if kind not in (None, "file"):
        raise InputError(expected=f"{path} to be a file", got=kind, remedy="write the data to a regular file")
    return kind is not None


@contextmanager
def opened(path: Path) -> Iterator[Stream]:
    """Open a text file for reading bytes, decompressed if its name ends in .gz.

    Raises:
        InputError: no regular file or not readable, another kind of file by its first bytes, damaged compression, or
            more bytes than the limits (also later, while reading).
    """
    try:
        if not is_file(path):
            raise FileNotFoundError("no such file")
        with path.open("rb") as packed:
            is_packed = path.suffix.lower() == ".gz"
            source: Any = gzip.GzipFile(fileobj=packed) if is_packed else packed
            stream = Stream(_Limited(path, source, os.fstat(packed.fileno()).st_size), _BUFFER)
            _refuse_foreign(path, stream)
            yield stream
    except (EOFError, OSError, zlib.error) as error:
        raise unreadable(path, error) from error


def numbered_lines(
    path: Path, stream: Stream, newline: str | None, max_line: int | None = None
) -> Iterator[tuple[int, str]]:
    """Yield lines of UTF-8 with their ends and their numbers from 1, without a byte order mark.

    Args:
        newline: that of ``open``: None turns all ends into line feeds, "" leaves them.
        max_line: bytes of a line, None = any.

    Raises:
        InputError: a line that is too long, is not UTF-8 or contains a NUL.
    """
    number = 0
    while line := stream.readline() if max_line is None else stream.readline(max_line + 1):
        if max_line is not None and len(line) > max_line:
            raise too_long(path, number + 1, max_line)
        text = _decoded(path, number + 1, line if number else line.removeprefix(b"\xef\xbb\xbf"))
        for part in [text] if newline == "" or "\r" not in text else io.StringIO(text, newline=None):
            number += 1
            yield number, part


def too_long(path: Path, number: int, most: int) -> InputError:
    """Return the refusal of a row for its length, by the line in which it begins."""
    return InputError(
        expected=f"rows of at most {most / 2**20:g} MiB",
        got=f"a longer one in {path}, line {number}",
        remedy="split or remove it",
    )


def unreadable(path: Path, error: BaseException, expected: str = "a readable text or rows") -> InputError:
    """Return the refusal of a file that is damaged or cannot be opened."""
    got = one_line(error) if type(error) in (FileNotFoundError, ValueError) else f"{type(error).__name__}: {error}"
    return InputError(
        expected=f"{path} to hold {expected}",
        got=" ".join(got.split())[:200],
        remedy="check the path and its permissions, or download the file again",
    )


class _Limited(io.RawIOBase):
    """The bytes of an open file, up to the limits."""

    def __init__(self, path: Path, source: Any, size: int) -> None:
        self._path, self._source, self._size, self._total = path, source, size, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._source.readinto(buffer)
        self._total += count
        refuse_beyond_limits(self._path, self._total, self._size)
        return count


def refuse_beyond_limits(path: Path, num_bytes: int, size: int) -> None:
    """Refuse a file of ``size`` bytes from which too many have been read, as from an archive made to fill memory.

    Raises:
        InputError: beyond ``MAX_BYTES`` or ``MAX_RATIO``.
    """
    if num_bytes > MAX_BYTES:
        raise InputError(
            expected=f"at most {MAX_BYTES >> 30} GiB of text in one file", got=f"more in {path}", remedy="split it"
        )
    if num_bytes > UNLIMITED_BYTES and num_bytes > MAX_RATIO * size:
        raise InputError(
            expected=f"a file that decompresses to at most {MAX_RATIO} times its size",
            got=f"more in {path} ({size} bytes)",
            remedy="decompress it and pass the result, if you trust it",
        )


def _refuse_foreign(path: Path, stream: Stream) -> None:
    head = stream.peek(16)
    for first, kind in FOREIGN.items():
        if head.startswith(first):
            raise InputError(
                expected=f"{path} to hold UTF-8 text or rows, gzipped only if it is named .gz",
                got=kind,
                remedy="unpack or convert it",
            )


def _decoded(path: Path, number: int, line: bytes) -> str:
    if b"\0" in line:
        raise InputError(
            expected="text without NUL bytes",
            got=f"one in {path}, line {number}",
            remedy="convert the file to UTF-8 text, or remove it",
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            expected="UTF-8 text",
            got=f"the byte 0x{line[error.start]:02X} in {path}, line {number} ({error.reason})",
            remedy="convert the file to UTF-8",
        ) from error
