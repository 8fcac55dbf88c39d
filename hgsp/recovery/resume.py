"""The folder of a run that is not finished: made, taken over by ``--resume``, or refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hgsp.errors import InputError
from hgsp.recovery.config import RecoveryConfig

SETTINGS = "settings.json"
#: Fields of the configuration that may differ between a run and its resumption: they change no number.
FREE_TO_CHANGE = (
    "resume",
    "overwrite",
    "device",
    "use_gradient_checkpointing",
    "distill_device",
    "distill_offload",
    "report_to",
    "no_bin",
)


def last_complete_state(folder: Path) -> Path | None:
    """The newest state that was written to its end: the Trainer writes ``trainer_state.json`` last."""
    states = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json") if _is_json(path)]
    return max(states, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def check_work_dir(config: RecoveryConfig) -> None:
    """Refuse to start over an unfinished run, or to resume one that is not there or was asked for something else.

    Raises:
        InputError: names the settings that differ.
    """
    file = config.work_dir / SETTINGS
    if not config.resume:
        if config.work_dir.exists() and not config.overwrite:
            raise InputError(
                expected="no unfinished run in the way",
                got=f"{config.work_dir} exists",
                remedy="go on with it by finetune_lora.py --resume, or start over with --overwrite",
            )
        return
    if not file.is_file():
        raise InputError(
            expected="an unfinished run to resume", got=f"none in {config.work_dir}", remedy="leave --resume out"
        )
    now, before = _settings(config), json.loads(file.read_text())
    changed = sorted(name for name in now if now[name] != before.get(name))
    if changed:
        raise InputError(
            expected="the settings of the unfinished run with --resume",
            got=", ".join(f"--{name} {now[name]} instead of {before.get(name)}" for name in changed),
            remedy="repeat the command as it was, or start over with --overwrite",
        )


@contextmanager
def resumable_run(config: RecoveryConfig) -> Iterator[None]:
    """The folder of a run, in place of an unfinished one if there is one and it is not resumed.

    It vanishes when the run is finished, or fails before it has saved anything to resume from.
    """
    if not config.resume:
        if config.work_dir.exists():
            shutil.rmtree(config.work_dir)
        config.work_dir.mkdir(parents=True)
        (config.work_dir / SETTINGS).write_text(json.dumps(_settings(config), indent=2))
    try:
        yield
    except BaseException:
        if not _can_be_resumed(config.work_dir):
            shutil.rmtree(config.work_dir)
        raise
    shutil.rmtree(config.work_dir)


def _can_be_resumed(work_dir: Path) -> bool:
    """Whether there is a state, or what the parent said of the text."""
    return last_complete_state(work_dir / "states") is not None or any(work_dir.glob("parent/*/cache.json"))


def _settings(config: RecoveryConfig) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(config).items() if name not in FREE_TO_CHANGE}
    return dict(json.loads(json.dumps(settings)))


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True
