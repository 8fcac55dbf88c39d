"""Result folders: checked before any work starts, and written completely or not at all."""

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
    """Yield a temporary sibling of ``target`` that replaces it on success and is removed on failure or interrupt.

    An existing ``target`` is deleted only after the new folder has taken its place. A symbolic link stays a link.

    Raises:
        InputError: ``target`` exists and ``overwrite`` is not set.
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
    """Refuse an unusable result folder before the run starts.

    Args:
        flag: the flag that names the folder.
        reads: inputs of the run; names that are not local paths are ignored.

    Raises:
        InputError: ``target`` exists, is not writable, or would be overwritten although it is not a result or contains
            an input of the run.
    """
    refuse_existing(target, overwrite)
    refuse_unwritable(target, flag)
    if not target.exists():
        return
    for path in (Path.cwd(), *(Path(name) for name in reads if name)):
        if path.exists() and path.resolve().is_relative_to(target.resolve()):
            raise InputError(
                expected="a result folder that contains nothing still in use",
                got=f"{target} to be replaced while {path} is in use",
                remedy=f"choose another with {flag}",
            )
    if any(target.iterdir()) and not any((target / report).is_file() for report in REPORTS):
        raise InputError(
            expected=f"an earlier result for --overwrite to replace (with {' or '.join(REPORTS)})",
            got=f"{target}, which contains something else",
            remedy=f"choose another with {flag}, or delete it yourself",
        )


def check_file_target(target: Path, overwrite: bool, flag: str) -> None:
    """Refuse an unusable output file before the run starts.

    Raises:
        InputError: ``target`` exists, is a folder, or its folder is not writable.
    """
    if target.is_dir():
        raise InputError(expected=f"{flag} to be a file", got=f"{target}, a folder", remedy="name a file inside it")
    refuse_existing(target, overwrite)
    refuse_unwritable(target.parent, flag)


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Refuse to replace ``target`` unless ``overwrite`` is set.

    Raises:
        InputError: it exists.
    """
    if target.exists() and not overwrite:
        raise InputError(
            expected="a new name for the result", got=f"{target} exists", remedy="use another name or --overwrite"
        )


def refuse_unwritable(target: Path, flag: str) -> None:
    """Refuse a folder that cannot be created or written to, before the run starts.

    Raises:
        InputError: a file is in the way, or permissions are missing.
    """
    existing = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(
            expected=f"a writable result folder ({target})",
            got=f"{existing}, which is not",
            remedy=f"choose another with {flag}",
        )
