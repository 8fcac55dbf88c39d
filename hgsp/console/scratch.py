"""Temporary folders that outlive no run: those of killed ones are removed by the next."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from hgsp.console.disk import check_free_space
from hgsp.environment import lock_of, remove_abandoned

PREFIX, SUFFIX = ".hgsp-", ".scratch"
#: Suffix where there are no locks: nobody can tell whether the process lives, so nobody may remove the folder.
UNLOCKED = ".unlocked"
#: Bytes of a log and a tokenizer, twice.
TEMPORARY_BYTES = 40_000_000
_ABANDONED = re.compile(rf"{re.escape(PREFIX)}\w{{8}}{re.escape(SUFFIX)}")


class ScratchFolder:
    """A temporary folder, removed by ``close``, at the end of a ``with`` block, or when Python ends.

    It is locked while its process lives. Every new one removes those of dead processes beside it; where there are no
    locks (Windows, some network drives), those stay.

    Args:
        parent: created if missing; None is the system's folder for temporary files.

    Raises:
        InputError: the system's folder is full.
    """

    def __init__(self, parent: Path | None = None) -> None:
        if parent is None:
            parent = Path(tempfile.gettempdir())
            check_free_space(parent, TEMPORARY_BYTES, "temporary files", "set TMPDIR to a folder on another disk")
        parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned_scratch(parent)
        self.path, lock = _made_in(parent)
        self.close = weakref.finalize(self, _remove, self.path, lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_abandoned_scratch(parent: Path | None = None) -> None:
    """Remove the temporary folders of killed runs in a folder; None is the system's for temporary files."""
    remove_abandoned(parent or Path(tempfile.gettempdir()), _ABANDONED)


def _made_in(parent: Path) -> tuple[Path, int | None]:
    """Make a folder and lock it; again if another process took it for an abandoned one before it was locked."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=parent))
        lock = lock_of(path, wait=True)
        with suppress(FileNotFoundError):
            if lock is None:
                return path.rename(path.with_suffix(UNLOCKED)), None
            path.stat()
            return path, lock
        if lock is not None:
            os.close(lock)


def _remove(path: Path, lock: int | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        os.close(lock)
