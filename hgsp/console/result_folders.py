"""Result folders: checked before any work starts, and written completely or not at all."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import Timeout

from hgsp.console.exchange import exchange
from hgsp.console.locks import held
from hgsp.console.report_schema import PRUNING_REPORT, RECOVERY_REPORT
from hgsp.environment import process_rank, sync, umask
from hgsp.errors import InputError

LOG = logging.getLogger(__name__)

#: Reports that a finished run leaves in its folder; ``--overwrite`` replaces no folder without one.
REPORTS = (PRUNING_REPORT, RECOVERY_REPORT)


@contextmanager
def reserved(*targets: Path) -> Iterator[None]:
    """Hold the names of results against other runs, and tidy up after killed ones.

    A result that a killed run had moved aside takes its place again; half-written folders are removed. A run may
    reserve a name several times. Only the first of several launched processes reserves anything.

    Raises:
        InputError: another run holds one of the names.
    """
    if process_rank():
        yield
        return
    with ExitStack() as stack:
        for place in sorted({target.resolve() for target in targets}):
            try:
                stack.enter_context(_lock(place))
            except Timeout:
                raise InputError(
                    expected="one run for each result",
                    got=f"{place}, which another run is writing",
                    remedy="wait until that run has ended, or use another name",
                ) from None
            remove_leftovers(place)
        yield


@contextmanager
def _lock(place: Path) -> Iterator[None]:
    made = [parent for parent in place.parents if not parent.exists()]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with held(_lock_file(place), timeout=0):
            yield
    finally:
        with suppress(OSError):  # where there is a result
            for parent in made:
                parent.rmdir()


def _lock_file(place: Path) -> Path:
    return place.with_name(f".{place.name}.lock")


def remove_leftovers(place: Path) -> None:
    """Remove everything that killed runs left beside a result, or put it back where the result itself is missing.

    Nothing is touched while a run holds the name. Only the first of several launched processes removes anything.
    """
    if process_rank():
        return
    leftover = re.compile(
        rf"\.{re.escape(place.name)}(\.reconstruction|\.training)?-\w+\.(partial|replaced|removed)"
        rf"|\.[0-9a-f]{{8}}-{re.escape(place.name)}(\.search\.json)?"
    )
    found = sorted(path for path in place.parent.glob(".*-*") if leftover.fullmatch(path.name))
    if not found and not _lock_file(place).exists():
        return
    with suppress(Timeout, OSError), _lock(place):
        for path in found:
            if path.suffix == ".replaced" and not os.path.lexists(place):
                LOG.warning("%s: a killed run had moved this result aside; it is in its place again", place)
                path.rename(place)
            elif os.path.lexists(path):
                LOG.info("removing %s, left behind by a killed run", path)
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary sibling of ``target`` that replaces it on success and is removed on failure or interrupt.

    It is on disk before it gets the name, with the permissions of the user's umask. An existing ``target`` is exchanged
    with it in one step where the file system can do that, and deleted afterwards. A symbolic link stays a link.

    Raises:
        InputError: ``target`` exists and ``overwrite`` is not set, is a link to nothing, or another run is writing it.
    """
    refuse_existing(target, overwrite)
    with reserved(target):
        place = target.resolve()
        partial = place.with_name(f".{place.name}-{secrets.token_hex(4)}.partial")
        replaced = partial.with_suffix(".replaced")
        try:
            partial.mkdir()
            yield partial
            refuse_existing(target, overwrite)
            _settle(partial)
            if not (place.exists() and exchange(partial, place)):
                if place.exists():
                    place.rename(replaced)
                partial.rename(place)
            sync(place.parent)
        except BaseException:
            if replaced.exists() and not os.path.lexists(place):
                replaced.rename(place)
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if os.path.lexists(place):
                shutil.rmtree(replaced, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Give all files the permissions of the user's umask and write them to disk, and then the folders."""
    mask = umask()
    for parent, _, names in os.walk(folder, topdown=False):
        for path in (Path(parent, name) for name in names):
            path.chmod(0o666 & ~mask)
            sync(path)
        Path(parent).chmod(0o777 & ~mask)
        sync(Path(parent))


def check_target(target: Path, overwrite: bool, flag: str, reads: Iterable[str | Path | None] = ()) -> None:
    """Refuse an unusable result folder before the run starts.

    Args:
        flag: the flag that names the folder.
        reads: inputs of the run; names that are not local paths are ignored.

    Raises:
        InputError: ``target`` exists, is not writable, or would be overwritten although it is not a result or contains
            an input of the run.
    """
    remove_leftovers(target.resolve())
    refuse_existing(target, overwrite)
    refuse_unwritable(target, flag)
    if not target.exists():
        return
    refuse_unwritable(target.resolve().parent, flag)  # where the new result is written and renamed
    if os.path.ismount(target):
        raise InputError(
            expected="a result folder that can be replaced",
            got=f"{target}, a mount point",
            remedy=f"name a folder inside it with {flag}",
        )
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
    remove_leftovers(target.resolve())
    if target.exists() and not target.is_file():
        got = f"{target}, a {'folder' if target.is_dir() else 'pipe or device'}"
        raise InputError(expected=f"{flag} to be a file", got=got, remedy="name a file inside a folder")
    refuse_existing(target, overwrite)
    refuse_unwritable(target.parent, flag)


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Refuse to replace ``target`` unless ``overwrite`` is set.

    Raises:
        InputError: it exists, or is a symbolic link to nothing.
    """
    if target.is_symlink() and not target.exists():
        raise InputError(
            expected="a new name for the result",
            got=f"{target}, a symbolic link to {target.readlink()}, which does not exist",
            remedy="remove the link, or create the folder that it names",
        )
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
