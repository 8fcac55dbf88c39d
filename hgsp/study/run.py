"""Runs the cells that are not there yet, one process each, so that nothing but the cell in progress can be lost."""

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

from hgsp.console.flags import parse
from hgsp.console.report_schema import PRUNING_REPORT
from hgsp.errors import InputError
from hgsp.pipeline.config import PruneConfig
from hgsp.study.matrix import Cell
from hgsp.study.resume import check_finished, is_finished, scores_for

LOG = logging.getLogger(__name__)

#: The cells' own flags, which no user may pass through, and why.
RESERVED = {
    "--base_model": "the study names its models; MODELS_DIR says where they are",
    "--output_name": "the study names its folders; --results_dir says where they go",
    "--pruning_ratio": "the study has its own ratios",
    "--scores": "cells share their model's scores by themselves",
    "--overwrite": "remove the folders of cells that shall be made again",
}
#: Seconds a cell that was interrupted has to remove what it half wrote.
GRACE_S = 60.0

#: Runs the recipe with these arguments and returns its exit code, negative for a signal.
Execute = Callable[[list[str]], int]


@dataclass
class Outcome:
    """What became of the cells, in words: exit codes are of failures."""

    kept: list[Cell] = field(default_factory=list)
    made: list[Cell] = field(default_factory=list)
    failed: list[tuple[Cell, int, list[str]]] = field(default_factory=list)


def config_of(cell: Cell, results_dir: str, passed: Sequence[str]) -> PruneConfig:
    """What the recipe will understand; argparse ends the process with 2 where it does not.

    Raises:
        InputError: a value that makes no sense, or a flag that is the study's own.
    """
    for flag in passed:
        name = flag.partition("=")[0]
        if name in RESERVED:
            raise InputError(expected="flags for all cells", got=name, remedy=RESERVED[name])
    return parse(PruneConfig, cell.arguments(results_dir, passed, None), prog="run_global_pruning.py", description="")


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left of a cell: its folder, or the recovered one, under a temporary name."""
    for name in (folder.name, f"{folder.name}_finetuned"):
        for partial in folder.parent.glob(f".{name}-*.partial"):
            LOG.info("removing %s, left by a run that was killed", partial)
            shutil.rmtree(partial)


def run_cells(cells: Sequence[Cell], results_dir: str, passed: Sequence[str], execute: Execute) -> Outcome:
    """Run what is not finished; a cell that fails does not stop the others.

    Raises:
        InputError: before anything is run, as ``config_of`` and ``check_finished``.
        KeyboardInterrupt: as ``execute``.
    """
    configs = [config_of(cell, results_dir, passed) for cell in cells]
    if any(config.dry_run for config in configs):
        raise InputError(expected="--dry_run before --", got="--dry_run for the recipe", remedy="it makes no results")
    check_finished(cells, configs)
    outcome = Outcome()
    for number, (cell, config) in enumerate(zip(cells, configs, strict=True), 1):
        if is_finished(cell, config):
            LOG.info("[%d/%d] %s: finished before, kept", number, len(cells), cell.output_name)
            outcome.kept.append(cell)
            continue
        folder = cell.folder(results_dir)
        remove_leftovers(folder)
        arguments = cell.arguments(results_dir, passed, scores_for(cell, cells, results_dir, config))
        if (folder / PRUNING_REPORT).is_file():
            arguments.append("--overwrite")  # pruned, but not recovered as asked
        LOG.info("[%d/%d] %s", number, len(cells), shown(arguments))
        code = execute(arguments)
        if code == 0:
            outcome.made.append(cell)
        else:
            outcome.failed.append((cell, code, arguments))
            LOG.error("%s: %s; going on", cell.output_name, in_words(code))
    return outcome


def shown(arguments: Sequence[str]) -> str:
    """The command to type in the repository."""
    return shlex.join(["python", "run_global_pruning.py", *arguments])


def in_words(code: int) -> str:
    """What an exit code means."""
    if code < 0:
        return f"ended by signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return {2: "refused (exit code 2)"}.get(code, f"failed (exit code {code})")


@contextlib.contextmanager
def only_run(results_dir: str) -> Iterator[Path]:
    """Hold the lock of a results folder; gives the path of the second lock, which each cell holds while it runs.

    Raises:
        InputError: another study, or a cell that outlived a killed one, is running there.
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
            got="another one, or a cell that outlived a killed one, which is still running",
            remedy="wait for it, or name another --results_dir",
        ) from error


def in_own_process(command: Sequence[str]) -> Execute:
    """Return a function that runs a cell as a process of its own: ``command`` followed by the cell's arguments.

    Ctrl-C reaches the process by itself; SIGTERM, which only ends the study, is passed on so that the cell cleans up.
    """

    def execute(arguments: list[str]) -> int:
        process = subprocess.Popen([*command, *arguments])

        def pass_on(number: int, frame: FrameType | None) -> Any:
            process.send_signal(signal.SIGINT)
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, pass_on)
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
