"""Folders of results: refused early, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hgsp.console.report_schema import PRUNING_REPORT, RECOVERY_REPORT
from hgsp.errors import InputError

#: Reports that a finished run leaves in its folder; ``--overwrite`` replaces no folder without one.
REPORTS = (PRUNING_REPORT, RECOVERY_REPORT)


@contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of ``target`` that takes its place on success and vanishes on failure or interrupt.

    What ``target`` was before goes when the new folder is in its place. A symbolic link stays one.
    """
    refuse_existing(target, overwrite)
    place = target.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{place.name}-", suffix=".partial", dir=place.parent))
    partial.chmod(0o755)
    replaced = partial.with_suffix(".replaced")
    try:
        yield partial
        refuse_existing(target, overwrite)
        if place.exists():
            place.rename(replaced)
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if replaced.exists():
            replaced.rename(place)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def check_target(target: Path, overwrite: bool, flag: str, reads: Iterable[str | Path | None] = ()) -> None:
    """Refuse a folder for results that will not do, before there is anything to write.

    Args:
        flag: the one that names the folder.
        reads: what the run reads; of these, only what is a file or a folder here can be in the way.

    Raises:
        InputError: it exists, cannot be written, or is to be replaced although it is no result or holds what is read.
    """
    refuse_existing(target, overwrite)
    refuse_unwritable(target, flag)
    if not target.exists():
        return
    for path in (Path.cwd(), *(Path(name) for name in reads if name)):
        if path.exists() and path.resolve().is_relative_to(target.resolve()):
            raise InputError(
                expected="a folder for results with nothing in it that is still needed",
                got=f"{target} to be replaced, and {path} in it",
                remedy=f"name another with {flag}",
            )
    if any(target.iterdir()) and not any((target / report).is_file() for report in REPORTS):
        raise InputError(
            expected=f"an earlier result for --overwrite to replace (with {' or '.join(REPORTS)})",
            got=f"{target}, which holds something else",
            remedy=f"name another with {flag}, or delete it yourself",
        )


def check_file_target(target: Path, overwrite: bool, flag: str) -> None:
    """Refuse a file to write that is there already, is a folder, or lies where nothing can be written.

    Raises:
        InputError: says which.
    """
    if target.is_dir():
        raise InputError(expected=f"{flag} to be a file", got=f"{target}, a folder", remedy="name a file in it")
    refuse_existing(target, overwrite)
    refuse_unwritable(target.parent, flag)


def refuse_existing(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise InputError(
            expected="a new name for the result", got=f"{target} exists", remedy="use another name or --overwrite"
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
