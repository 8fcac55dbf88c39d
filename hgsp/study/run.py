"""Execution of the unfinished cells, one process each, so that a crash costs only one cell."""

from __future__ import annotations

import logging
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hgsp.console.parser import flag_of
from hgsp.console.report_schema import PRUNING_REPORT
from hgsp.console.result_folders import remove_leftovers, reserved
from hgsp.errors import InputError
from hgsp.pipeline.config import settings_of
from hgsp.report.page import HTML, MARKDOWN, write_report
from hgsp.study.matrix import Cell
from hgsp.study.processes import Start, interrupted_together, wait_for_one
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


def _remove_leftovers(folder: Path) -> None:
    """Remove those of a cell and of its recovered sibling."""
    for place in (folder, folder.with_name(f"{folder.name}_finetuned")):
        remove_leftovers(place)


def complete(folder: Path) -> None:
    """Write the report of a finished cell whose run was killed before it had one, and remove its leftovers."""
    with reserved(folder):
        pages = [folder / HTML, folder / MARKDOWN]
        if not all(page.exists() for page in pages):
            for page in pages:
                remove_leftovers(page)
            write_report(folder)


def run_cells(
    cells: Sequence[Cell],
    results_dir: str,
    passed: Sequence[str],
    start: Start,
    devices: Sequence[str | None] = (None,),
) -> Outcome:
    """Run the unfinished cells, at most one per device at a time; a cell that fails does not stop the others.

    A cell waits for others of its model until there are scores to reuse, so that its arguments are those that it has on
    one device. With several devices, its output goes to a file beside its folder.

    Args:
        devices: values of ``--device``, repeated ones included; None leaves it to the command.

    Raises:
        InputError: before anything runs, as ``cell_settings`` and ``check_finished``.
        KeyboardInterrupt: once the running cells have ended.
    """
    from hgsp.console.scratch import remove_abandoned_scratch  # with rich, which help pages do without

    settings = [cell_settings(cell, results_dir, passed) for cell in cells]
    if any(own["dry_run"] for own in settings):
        raise InputError(expected="--dry_run before --", got="--dry_run after it", remedy="pass it to the study itself")
    if tuple(devices) != (None,) and "--device" in map(flag_of, passed):
        raise InputError(expected="--device or --devices", got="both", remedy="pass --devices alone")
    remove_abandoned_scratch()
    for cell in cells:
        _remove_leftovers(cell.folder(results_dir))
    check_finished(cells, settings)
    study = _Study(list(cells), results_dir, list(passed), start, devices)
    for number, (cell, own) in enumerate(zip(cells, settings, strict=True), 1):
        if is_finished(cell, own):
            LOG.info("[%d/%d] %s: already finished", number, len(cells), cell.output_name)
            complete(cell.folder(results_dir))
            study.outcome.already_finished.append(cell)
        else:
            study.waiting.append((number, cell, own))
    try:
        study.run()
    except KeyboardInterrupt:
        for cell, _ in study.running.values():
            _remove_leftovers(cell.folder(results_dir))
        raise
    return study.outcome


@dataclass
class _Study:
    """The cells that wait and run, and how the others ended."""

    cells: list[Cell]
    results_dir: str
    passed: list[str]
    start: Start
    devices: Sequence[str | None]
    waiting: list[tuple[int, Cell, Mapping[str, Any]]] = field(default_factory=list)
    running: dict[int, tuple[Cell, list[str]]] = field(default_factory=dict)
    outcome: Outcome = field(default_factory=Outcome)

    def run(self) -> None:
        """Keep every device busy until no cell is left."""
        processes: dict[int, Any] = {}
        with interrupted_together(processes):
            while self.waiting or processes:
                for index in range(len(self.devices)):
                    if index not in processes and (process := self.start_next(index)) is not None:
                        processes[index] = process
                ended = wait_for_one(processes)
                self.finish(ended, processes.pop(ended).poll())

    def start_next(self, index: int) -> Any:
        """Start the first cell that can run on a device, given by its number; None if all have to wait."""
        blocked = {cell.model for cell, _ in self.running.values()}
        for item in self.waiting:
            number, cell, own = item
            scores = scores_for(cell, self.cells, self.results_dir, own)
            if scores is None and cell.model in blocked:
                continue
            self.waiting.remove(item)
            arguments = self._arguments(cell, scores, self.devices[index])
            folder = cell.folder(self.results_dir)
            log = folder.with_name(f"{folder.name}.log") if len(self.devices) > 1 else None
            output = "" if log is None else f" > {shlex.quote(str(log))}"
            LOG.info("[%d/%d] %s%s", number, len(self.cells), as_shell_command(arguments), output)
            self.running[index] = cell, arguments
            return self.start(arguments, index, log)
        return None

    def _arguments(self, cell: Cell, scores: Path | None, device: str | None) -> list[str]:
        folder = cell.folder(self.results_dir)
        passed = self.passed if device is None else [*self.passed, "--device", device]
        arguments = cell.arguments(self.results_dir, passed, scores)
        if (folder / PRUNING_REPORT).is_file():
            arguments.append("--overwrite")  # pruned, but not yet recovered
        return arguments

    def finish(self, index: int, code: int) -> None:
        """Record how the cell on a device ended."""
        cell, arguments = self.running.pop(index)
        if code == 0:
            self.outcome.completed.append(cell)
        else:
            self.outcome.failed.append(FailedCell(cell, code, arguments))
            LOG.error("%s: %s; continuing with the next cell", cell.output_name, describe_exit_code(code))


def as_shell_command(arguments: Sequence[str]) -> str:
    """Return the command to run a cell from the repository."""
    return shlex.join(["python", "run_global_pruning.py", *arguments])


def describe_exit_code(code: int) -> str:
    """Describe the exit code of a failed cell, negative for a signal."""
    if code < 0:
        return f"killed by signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return {2: "refused (exit code 2)"}.get(code, f"failed (exit code {code})")
