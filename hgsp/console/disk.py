"""Free disk space, known before anything is computed."""

from __future__ import annotations

import shutil
from pathlib import Path

from hgsp.console.tables import format_bytes
from hgsp.errors import InputError


def check_free_space(folder: Path, needed: int, purpose: str, remedy: str) -> None:
    """Refuse work whose files would not fit on the disk that a folder is on, or will be.

    Args:
        needed: bytes.
        purpose: the files, in words.

    Raises:
        InputError: names both sizes.
    """
    free = free_disk(folder)
    if needed > free:
        raise InputError(
            expected=f"{format_bytes(needed)} of free disk for {purpose}",
            got=f"{format_bytes(free)} on the disk of {folder}",
            remedy=f"free space, or {remedy}",
        )


def free_disk(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or will be."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
