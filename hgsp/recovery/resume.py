"""The folder of an unfinished run: created, resumed, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hgsp.console.state_files import check_state_folder, read_state, write_state
from hgsp.environment import remove_folder
from hgsp.errors import InputError
from hgsp.recovery.trainer_states import last_complete_state

SETTINGS, CONTENT, KIND = "settings.json", "content.json", "training"
#: Folder of the teacher's cache within that of the run.
TEACHER_CACHE = "parent"


def check_work_dir(work_dir: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Refuse to start over an unfinished run, or to resume one that is missing or has other settings.

    Raises:
        InputError: names the settings that differ; or the folder has other content.
    """
    check_state_folder(work_dir, SETTINGS, KIND)
    if not resume:
        if work_dir.exists() and not overwrite:
            raise InputError(
                expected="no unfinished run in the way",
                got=f"{work_dir} exists",
                remedy="resume it with finetune_lora.py --resume, or start over with --overwrite",
            )
        return
    before = read_state(work_dir / SETTINGS, KIND, dict[str, Any])
    if before is None:
        raise InputError(
            expected="an unfinished run to resume",
            got=f"none in {work_dir}",
            remedy="start over with --overwrite" if work_dir.exists() else "omit --resume",
        )
    changed = sorted(name for name in settings if settings[name] != before.get(name))
    if changed:
        raise InputError(
            expected="the settings of the unfinished run with --resume",
            got=", ".join(f"--{name} {settings[name]} instead of {before.get(name)}" for name in changed),
            remedy="repeat the original command, or start over with --overwrite",
        )


def check_content(work_dir: Path, content: Mapping[str, str], *, resume: bool) -> None:
    """Store the hashes of everything that a run reads, or refuse to resume one that read something else.

    Args:
        content: name of an input -> its hash. Paths do not count: a file may have changed, or moved.

    Raises:
        InputError: names the inputs that differ.
    """
    before = read_state(work_dir / CONTENT, KIND, dict[str, str]) if resume else None
    if before is None:
        write_state(work_dir / CONTENT, KIND, content)
        return
    changed = [name for name in content if content[name] != before.get(name)]
    if changed:
        raise InputError(
            expected="the inputs of the unfinished run with --resume",
            got=f"another content of the {' and the '.join(changed)}",
            remedy="restore it, or start over with --overwrite",
        )


@contextmanager
def resumable_run(work_dir: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
    """Create the folder of a run, replacing an unfinished one unless it is resumed.

    It is removed when the run is finished, or fails before anything was saved to resume from.
    """
    if not resume:
        remove_folder(work_dir)
        work_dir.mkdir(parents=True)
        write_state(work_dir / SETTINGS, KIND, settings)
    try:
        yield
    except BaseException:
        if not _can_be_resumed(work_dir):
            remove_folder(work_dir)
        raise
    remove_folder(work_dir)


def _can_be_resumed(work_dir: Path) -> bool:
    """Return whether there is a complete state or a teacher cache."""
    return last_complete_state(work_dir / "states") is not None or any(work_dir.glob(f"{TEACHER_CACHE}/*/cache.json"))
