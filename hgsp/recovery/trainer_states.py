"""States that the Trainer saved: complete ones to resume from, and damaged ones, which are set aside."""

from __future__ import annotations

import re
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, TypedDict

from safetensors import SafetensorError, safe_open
from transformers import TrainerState

from hgsp.console.json_files import file_bytes, json_object
from hgsp.console.schemas import Between, Count, checked
from hgsp.console.state_files import set_aside
from hgsp.environment import process_rank

STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d{1,18})")
#: Files without which the Trainer would resume from the weights alone and say nothing, by patterns.
_NEEDED = ("optimizer.pt", "scheduler.pt", "rng_state*.pth")
_WEIGHTS = "*.safetensors"


class TrainerProgress(TypedDict):
    """The entries of ``trainer_state.json`` that decide how a training continues; the others are the Trainer's own."""

    global_step: Count
    epoch: Annotated[float, Between(0)] | None
    log_history: list[dict[str, Any]]
    best_metric: float | None
    best_model_checkpoint: str | None
    stateful_callbacks: dict[str, dict[str, Any] | list[dict[str, Any]]]


def last_complete_state(folder: Path) -> Path | None:
    """Return the newest complete state of a run; the Trainer writes ``trainer_state.json`` last.

    A state that was written to its end and is damaged is set aside, so that the one before it is taken.
    """
    found = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))}
    for _, path in sorted(found.items(), reverse=True):
        if not (path / STATE_FILE).is_file():
            continue  # the run was killed while it wrote this one
        try:
            check_state_of_trainer(path)
            return path
        except ValueError as error:
            if not process_rank():
                set_aside(path, str(error))
    return None


def check_state_of_trainer(path: Path) -> None:
    """Refuse a state of which a file is missing or damaged, or whose best state is gone.

    Raises:
        ValueError: names the file.
    """
    progress = read_progress(path)
    if progress["global_step"] != int(path.name.rpartition("-")[2]):
        raise ValueError(f"{STATE_FILE} is of step {progress['global_step']}")
    best = progress["best_model_checkpoint"]
    if best is not None:
        if _NAME.fullmatch(Path(best).name) is None:
            raise ValueError(f"its best state is {best!a}")
        _check_files(best_state(path.parent, best), _WEIGHTS)
    for pattern in (_WEIGHTS, *_NEEDED):
        _check_files(path, pattern)


def read_progress(path: Path) -> TrainerProgress:
    """Return the progress of a state.

    Raises:
        ValueError: the file is damaged.
    """
    content = json_object(file_bytes(path / STATE_FILE))
    if unknown := content.keys() - {item.name for item in fields(TrainerState)}:
        raise ValueError(f"{STATE_FILE} with the unknown entry {min(unknown)!a}")
    return checked(TrainerProgress, content)


def best_state(folder: Path, name: str) -> Path:
    """Return the best state of a run, which is in its folder wherever that was when the Trainer noted the path."""
    return folder / Path(name).name


def _check_files(folder: Path, pattern: str) -> None:
    """Refuse a folder without a file of a pattern, or with a damaged one.

    Raises:
        ValueError: names the file.
    """
    files = sorted(folder.glob(pattern))
    if not files:
        raise ValueError(f"{folder.name} has no {pattern}")
    for file in files:
        _check_file(file)


def _check_file(file: Path) -> None:
    """Refuse a file of tensors that is cut short or has a wrong checksum.

    Raises:
        ValueError: names the file.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (SafetensorError, OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file.name}: {error}") from error
    if damaged is not None:
        raise ValueError(f"{file.name}: wrong checksum")
