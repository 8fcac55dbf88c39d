"""Execution of the unfinished cells, one process each, so that a crash costs only the current cell."""

from __future__ import annotations

import contextlib
import logging
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from hgsp.console.parser import flag_of
from hgsp.console.report_schema import PRUNING_REPORT
from hgsp.errors import InputError
from hgsp.pipeline.config import settings_of
from hgsp.study.matrix import Cell
from hgsp.study.resume import check_finished, is_finished, scores_for

LOG = logging.getLogger(__name__)

#: Flags that the study sets itself, and why users may not pass them through.
RESERVED = {
    "--base_model": "the study chooses its models; MODELS_DIR names the folder of local copies",
    "--output_name": "the study names its folders; --results_dir chooses their location",
    "--pruning_ratio": "the study has its own ratios",
    "--scores": "the cells of a model share its scores automatically",
    "--token": "pass it before --, or set HF_TOKEN",
    "--overwrite": "remove the folders of cells to run again",
}
#: Seconds an interrupted cell has to remove its partial output.
GRACE_S = 60.0

#: Runs the pruning command with these arguments and returns its exit code, negative for a signal.
Execute = Callable[[list[str]], int]


@dataclass(frozen=True)
class FailedCell:
    """A cell whose command exited with a nonzero code."""

    cell: Cell
    exit_code: int
    arguments: list[str]


@dataclass
class Outcome:
    """The cells of a study by how they ended."""

    already_finished: list[Cell] = field(default_factory=list)
    completed: list[Cell] = field(default_factory=list)
    failed: list[FailedCell] = field(default_factory=list)


def cell_settings(cell: Cell, results_dir: str, passed: Sequence[str]) -> dict[str, Any]:
    """Return the settings that the pruning command will run a cell with; argparse exits with 2 on errors.

    Raises:
        InputError: an invalid value, or a flag that the study sets itself.
    """
    for flag in passed:
        name = flag_of(flag)
        if name in RESERVED:
            raise InputError(expected="flags for all cells", got=name, remedy=RESERVED[name])
    return settings_of(cell.arguments(results_dir, passed, None))


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders that a killed run left of a cell or of its recovered sibling."""
    for name in (folder.name, f"{folder.name}_finetuned"):
        for partial in folder.parent.glob(f".{name}-*.partial"):
            LOG.info("removing %s, left behind by a killed run", partial)
            shutil.rmtree(partial)


def run_cells(cells: Sequence[Cell], results_dir: str, passed: Sequence[str], execute: Execute) -> Outcome:
    """Run the unfinished cells; a cell that fails does not stop the others.

    Raises:
        InputError: before anything runs, as ``cell_settings`` and ``check_finished``.
        KeyboardInterrupt: from ``execute``.
    """
    settings = [cell_settings(cell, results_dir, passed) for cell in cells]
    if any(own["dry_run"] for own in settings):
        raise InputError(expected="--dry_run before --", got="--dry_run after it", remedy="pass it to the study itself")
    check_finished(cells, settings)
    outcome = Outcome()
    for number, (cell, own) in enumerate(zip(cells, settings, strict=True), 1):
        if is_finished(cell, own):
            LOG.info("[%d/%d] %s: already finished", number, len(cells), cell.output_name)
            outcome.already_finished.append(cell)
            continue
        folder = cell.folder(results_dir)
        remove_leftovers(folder)
        arguments = cell.arguments(results_dir, passed, scores_for(cell, cells, results_dir, own))
        if (folder / PRUNING_REPORT).is_file():
            arguments.append("--overwrite")  # pruned, but not yet recovered
        LOG.info("[%d/%d] %s", number, len(cells), as_shell_command(arguments))
        code = execute(arguments)
        if code == 0:
            outcome.completed.append(cell)
        else:
            outcome.failed.append(FailedCell(cell, code, arguments))
            LOG.error("%s: %s; continuing with the next cell", cell.output_name, describe_exit_code(code))
    return outcome


def as_shell_command(arguments: Sequence[str]) -> str:
    """Return the command to run a cell from the repository."""
    return shlex.join(["python", "run_global_pruning.py", *arguments])


def describe_exit_code(code: int) -> str:
    """Describe the exit code of a failed cell, negative for a signal."""
    if code < 0:
        return f"killed by signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return {2: "refused (exit code 2)"}.get(code, f"failed (exit code {code})")


@contextlib.contextmanager
def study_lock(results_dir: str) -> Iterator[Path]:
    """Lock a results folder; yields the path of a second lock, for each cell to hold while it runs.

    Raises:
        InputError: another study, or a cell that outlived a killed one, is running in the folder.
    """
    Path(results_dir).mkdir(parents=True, exist_ok=True)
    cell_lock = Path(results_dir) / ".run_all_experiments.cell.lock"
    try:
        with FileLock(Path(results_dir) / ".run_all_experiments.lock", timeout=0):
            with FileLock(cell_lock, timeout=0):
                pass
            yield cell_lock
    except Timeout as error:
        raise InputError(
            expected=f"one study at a time in {results_dir}",
            got="another study, or a cell that outlived a killed one, still running",
            remedy="wait for it to end, or choose another --results_dir",
        ) from error


def subprocess_executor(command: Sequence[str]) -> Execute:
    """Return a function that runs a cell in a subprocess: ``command`` followed by the cell's arguments.

    Ctrl-C reaches the subprocess directly; SIGTERM reaches only the study, which passes it on for the cell to clean up.
    """

    def execute(arguments: list[str]) -> int:
        process = subprocess.Popen([*command, *arguments])

        def interrupt(number: int, frame: FrameType | None) -> Any:
            process.send_signal(signal.SIGINT)
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, interrupt)
        try:
            return process.wait()
        except KeyboardInterrupt:
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)

    return execute
