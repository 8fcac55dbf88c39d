"""SHA-256 of the files of a result, in the format of ``sha256sum``, which checks them too."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from hgsp.console.report_schema import PRUNING_REPORT
from hgsp.environment import file_sha256, write_atomically
from hgsp.errors import InputError

CHECKSUMS = "checksums.sha256"
#: Files and folders that later commands or the user write again: reports, pages, the model card, logs.
REWRITTEN = (PRUNING_REPORT, "report.html", "report.md", "README.md", "logs", "runs", CHECKSUMS)

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files that nothing writes again; reads each file once, seconds per GB."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kept = [path for path in files if path.parts[0] not in REWRITTEN]
    lines = [f"{file_sha256(folder / path)}  {path.as_posix()}\n" for path in kept]
    write_atomically(folder / CHECKSUMS, "".join(lines))


def read_checksums(folder: Path) -> dict[str, str] | None:
    """Return file name -> SHA-256, None for a folder without the file.

    Raises:
        InputError: a line that is no checksum, or names a file outside the folder.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return None
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        match = _LINE.fullmatch(line)
        name = PurePosixPath(match[2]) if match else None
        if match is None or name is None or name.is_absolute() or ".." in name.parts:
            raise InputError(
                expected=f"a SHA-256 and the name of a file in the folder in line {number} of {path}",
                got=repr(line[:80]),
                remedy="the file is damaged",
            )
        found[match[2]] = match[1]
    return found
