"""Run the three-model study: LLaMA-3-8B at 20, 30 and 50 %, Mistral-7B-v0.3 and Qwen2.5-7B at 20 and 30 %.

Finished cells are kept, so the same command goes on after an interrupt. MODELS_DIR names a folder with local copies.
Flags that are not listed here go to run_global_pruning.py, for every cell; so does everything after --.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hgsp.console.exit_codes import run_guarded
from hgsp.errors import InputError
from hgsp.study import run as running
from hgsp.study.demo_model import demo_model
from hgsp.study.matrix import RESULTS_DIR, SMOKE_RESULTS_DIR, SMOKE_STUDY, Cell, planned, smoke_cells, study_cells

INTERRUPTED = "interrupted; finished cells are kept: the same command goes on with the next"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 all cells are there, 1 some failed, 2 bad input (nothing was run)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_guarded(lambda: study(*options(arguments)), interrupted=INTERRUPTED)


def options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The study's own flags, and those of the recipe in their order."""
    parser = argparse.ArgumentParser(
        prog="run_all_experiments.sh",
        description=__doc__,
        usage="%(prog)s [--smoke] [--dry_run] [--results_dir DIR] [--] [flags of run_global_pruning.py ...]",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--smoke", action="store_true", help="the same matrix on small models, minutes on a CPU")
    parser.add_argument("--dry_run", action="store_true", help="print the commands and run nothing")
    parser.add_argument(
        "--results_dir", help=f"where results go (unset: {RESULTS_DIR}, with --smoke {SMOKE_RESULTS_DIR})"
    )
    at = arguments.index("--") if "--" in arguments else len(arguments)
    own, passed = parser.parse_known_args(arguments[:at])
    own.results_dir = own.results_dir or (SMOKE_RESULTS_DIR if own.smoke else RESULTS_DIR)
    return own, [*passed, *arguments[at + 1 :]]


def study(own: argparse.Namespace, passed: Sequence[str]) -> int:
    """Run the cells, then write the summary of the models' folders."""
    cells = chosen_cells(own.smoke)
    if own.dry_run:
        for cell in cells:
            running.config_of(cell, own.results_dir, passed)
        for arguments in planned(cells, own.results_dir, passed):
            print(running.shown(arguments))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    check_installed()
    with running.only_run(own.results_dir) as cell_lock:
        outcome = running.run_cells(
            cells,
            own.results_dir,
            passed,
            running.in_own_process([sys.executable, "-m", "hgsp.cli.study_cell", str(cell_lock)]),
        )
    if outcome.kept or outcome.made:
        from hgsp.cli.summarize import SummaryConfig, summarize

        folders = dict.fromkeys(str(cell.folder(own.results_dir).parent) for cell in [*outcome.kept, *outcome.made])
        summarize(SummaryConfig(folders=tuple(folders), output=own.results_dir))
    print(f"\n{len(outcome.made)} cells made, {len(outcome.kept)} kept, {len(outcome.failed)} failed")
    for cell, code, arguments in outcome.failed:
        print(f"failed: {cell.output_name}, {running.in_words(code)}\n  {running.shown(arguments)}")
    return 1 if outcome.failed else 0


def chosen_cells(smoke: bool) -> list[Cell]:
    """The cells of the study, or of its small version, with the local models there are.

    Raises:
        InputError: MODELS_DIR is no folder, or there is no small model.
    """
    named = os.environ.get("MODELS_DIR")
    models_dir = Path(named) if named else None
    if models_dir is not None and not models_dir.is_dir():
        raise InputError(expected="MODELS_DIR to be a folder", got=f"'{named}'", remedy="unset it to use the hub")
    if not smoke:
        return study_cells(models_dir)
    folders = {name: models_dir / name for name in SMOKE_STUDY if models_dir and (models_dir / name).is_dir()}
    if "smollm2-135m" not in folders:
        folders["smollm2-135m"] = demo_model()
    return smoke_cells(folders)


def check_installed() -> None:
    """Refuse a Python that cannot run a single cell.

    Raises:
        InputError: with what to install.
    """
    missing = [name for name in ("torch", "transformers", "safetensors", "numpy", "rich") if find_spec(name) is None]
    if missing:
        raise InputError(
            expected=f"a Python with the packages of hgsp ({sys.executable})",
            got=f"no {', '.join(missing)}",
            remedy="activate its environment, or install with `pip install -e .` or `make test`",
        )


if __name__ == "__main__":
    sys.exit(main())
