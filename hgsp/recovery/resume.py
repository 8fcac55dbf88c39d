"""The folder of an unfinished run: created, resumed, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hgsp.environment import write_json
from hgsp.errors import InputError

SETTINGS = "settings.json"
#: Folder of the teacher's cache within that of the run.
TEACHER_CACHE = "parent"


def last_complete_state(folder: Path) -> Path | None:
    """Return the newest complete state: the Trainer writes ``trainer_state.json`` last."""
    states = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return max(states, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def check_work_dir(work_dir: Path, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Refuse to start over an unfinished run, or to resume one that is missing or has other settings.

    Raises:
        InputError: names the settings that differ.
    """
    file = work_dir / SETTINGS
    if not resume:
        if work_dir.exists() and not overwrite:
            raise InputError(
                expected="no unfinished run in the way",
                got=f"{work_dir} exists",
                remedy="resume it with finetune_lora.py --resume, or start over with --overwrite",
            )
        return
    if not file.is_file():
        raise InputError(expected="an unfinished run to resume", got=f"none in {work_dir}", remedy="omit --resume")
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = sorted(name for name in settings if settings[name] != before.get(name))
    if changed:
        raise InputError(
            expected="the settings of the unfinished run with --resume",
            got=", ".join(f"--{name} {settings[name]} instead of {before.get(name)}" for name in changed),
            remedy="repeat the original command, or start over with --overwrite",
        )


@contextmanager
def resumable_run(work_dir: Path, settings: Mapping[str, Any], *, resume: bool) -> Iterator[None]:
    """Create the folder of a run, replacing an unfinished one unless it is resumed.

    It is removed when the run is finished, or fails before anything was saved to resume from.
    """
    if not resume:
        if work_dir.exists():
            shutil.rmtree(work_dir)
        work_dir.mkdir(parents=True)
        write_json(settings, work_dir / SETTINGS)
    try:
        yield
    except BaseException:
        if not _can_be_resumed(work_dir):
            shutil.rmtree(work_dir)
        raise
    shutil.rmtree(work_dir)


def _can_be_resumed(work_dir: Path) -> bool:
    """Return whether there is a complete state or a teacher cache."""
    return last_complete_state(work_dir / "states") is not None or any(work_dir.glob(f"{TEACHER_CACHE}/*/cache.json"))


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
