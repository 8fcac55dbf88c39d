"""Run the three-model study: LLaMA-3-8B at 20, 30 and 50 %, Mistral-7B-v0.3 and Qwen2.5-7B at 20 and 30 %.

Finished cells are kept, so the same command resumes after an interrupt. MODELS_DIR names a folder with local copies.
Flags not listed here, and everything after --, are passed to the pruning command for every cell.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from hgsp.console.exit_codes import run_guarded
from hgsp.console.flags import given_settings, option, parse_known
from hgsp.console.settings_file import RUN_SETTINGS, command_line, recorded_fields, write_mapping
from hgsp.errors import InputError
from hgsp.pipeline.config import PruneConfig
from hgsp.study import processes
from hgsp.study import run as running
from hgsp.study.demo_model import demo_model
from hgsp.study.matrix import (
    RESULTS_DIR,
    SMOKE_RESULTS_DIR,
    SMOKE_STUDY,
    Cell,
    planned_arguments,
    smoke_cells,
    study_cells,
)

INTERRUPTED = "interrupted; finished cells are kept, and the same command resumes with the next"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Options of the study itself."""

    GROUP: ClassVar[str] = "study"

    smoke: bool = option(False, help="run the same matrix on small models, in minutes on a CPU")
    dry_run: bool = option(False, help="print the commands without running them", recorded=False)
    results_dir: str | None = option(
        None, help=f"folder for results (unset: {RESULTS_DIR}, with --smoke {SMOKE_RESULTS_DIR})"
    )
    devices: str | None = option(
        None,
        help="run one cell per device at a time, such as cuda:0,cuda:1; results are those of one device",
        recorded=False,
    )
    token: str | None = option(
        None, help="token for gated hub models, recorded nowhere; or HF_TOKEN", environment="HF_TOKEN"
    )

    def __post_init__(self) -> None:
        default = SMOKE_RESULTS_DIR if self.smoke else RESULTS_DIR
        object.__setattr__(self, "results_dir", self.results_dir or default)

    @property
    def folder(self) -> str:
        """The results folder in force."""
        return str(self.results_dir)


OPTIONS = StudyConfig


def main(argv: Sequence[str] | None = None, *, prog: str = "hgsp study") -> int:
    """Run the study; exit code 0 all cells finished, 1 some failed, 2 bad input (nothing was run)."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        own, passed = options(arguments, prog)
        return study(own, passed, command_line(prog, arguments, own))

    return run_guarded(run, interrupted=INTERRUPTED)


def options(arguments: Sequence[str], prog: str = "hgsp study") -> tuple[StudyConfig, list[str]]:
    """Split the command line into the study's own flags and those of the pruning command, in order."""
    usage = "%(prog)s [flags] [--] [flags of the pruning command]"
    return parse_known(OPTIONS, PruneConfig, arguments, prog=prog, description=__doc__ or "", usage=usage)


def study(own: StudyConfig, passed: Sequence[str], command: str) -> int:
    """Run the cells, then summarize the models' folders."""
    cells = chosen_cells(own.smoke)
    if own.dry_run:
        for cell in cells:
            running.cell_settings(cell, own.folder, passed)
        for arguments in planned_arguments(cells, own.folder, passed):
            print(running.as_shell_command(arguments))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    check_installed()
    devices = own.devices.split(",") if own.devices else []
    processes.check_devices(devices)
    with processes.study_lock(own.folder) as locks:
        write_study_settings(own, passed, command)
        start = processes.subprocess_starter([sys.executable, "-m", "hgsp.cli.study_cell"], locks)
        outcome = running.run_cells(cells, own.folder, passed, start, devices or (None,))
    if finished := [*outcome.already_finished, *outcome.completed]:
        from hgsp.cli.summarize import SummaryConfig, summarize

        folders = dict.fromkeys(str(cell.folder(own.folder).parent) for cell in finished)
        summarize(SummaryConfig(folders=tuple(folders), output=own.folder))
    counts = f"{len(outcome.completed)} cells completed, {len(outcome.already_finished)} already finished"
    print(f"\n{counts}, {len(outcome.failed)} failed")
    for failed in outcome.failed:
        print(f"failed: {failed.cell.output_name}, {running.describe_exit_code(failed.exit_code)}")
        print(f"  {running.as_shell_command(failed.arguments)}")
    return 1 if outcome.failed else 0


def write_study_settings(own: StudyConfig, passed: Sequence[str], command: str) -> None:
    """Write the settings that were given, to the study and to all cells."""
    recorded = {item.name: getattr(own, item.name) for item in recorded_fields(OPTIONS)}
    of_cells = given_settings(PruneConfig, passed, "hgsp study")
    write_mapping({**of_cells, **recorded}, Path(own.folder) / f"study.{RUN_SETTINGS}", command)


def chosen_cells(smoke: bool) -> list[Cell]:
    """Return the cells of the study, or of its small version, with local models where available.

    Raises:
        InputError: MODELS_DIR is not a folder, or no small model is available.
    """
    name = os.environ.get("MODELS_DIR")
    models_dir = Path(name) if name else None
    if models_dir is not None and not models_dir.is_dir():
        raise InputError(expected="MODELS_DIR to be a folder", got=f"'{name}'", remedy="unset it to use the hub")
    if not smoke:
        return study_cells(models_dir)
    folders = {name: models_dir / name for name in SMOKE_STUDY if models_dir and (models_dir / name).is_dir()}
    if "smollm2-135m" not in folders:
        folders["smollm2-135m"] = demo_model()
    return smoke_cells(folders)


def check_installed() -> None:
    """Refuse a Python environment that cannot run any cell.

    Raises:
        InputError: names the missing packages.
    """
    missing = [name for name in ("torch", "transformers", "safetensors", "numpy", "rich") if find_spec(name) is None]
    if missing:
        raise InputError(
            expected=f"a Python with the packages of hgsp ({sys.executable})",
            got=f"no {', '.join(missing)}",
            remedy="activate the right environment, or install with `pip install -e .` or `make test`",
        )


if __name__ == "__main__":
    sys.exit(main(prog="run_all_experiments.sh"))
