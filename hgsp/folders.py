"""Folders of results: refused early, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hgsp.errors import InputError


@contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of ``target`` that takes its place on success and vanishes on failure or interrupt."""
    refuse_existing(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".partial", dir=target.parent))
    partial.chmod(0o755)
    try:
        yield partial
        refuse_existing(target, overwrite)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_existing(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise InputError(
            expected="a new result folder", got=f"{target} exists", remedy="use another name or --overwrite"
        )


def refuse_unwritable(target: Path, flag: str) -> None:
    """Refuse a folder that could not be made or written into, before there is anything to write.

    Raises:
        InputError: something that is no folder is in the way, or permissions are.
    """
    existing = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(
            expected=f"a folder that can be written for results ({target})",
            got=f"{existing}, which cannot",
            remedy=f"name another with {flag}",
        )
