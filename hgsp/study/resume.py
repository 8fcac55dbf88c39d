"""Existing cells: whether they are finished, have the same settings, and hold scores to reuse."""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

from hgsp.console.portable_paths import portable
from hgsp.console.report_files import PruningReport, read_report_file
from hgsp.console.report_schema import PRUNING_REPORT, RECOVERY_REPORT
from hgsp.errors import InputError
from hgsp.pipeline.config import settings_of
from hgsp.study.matrix import Cell

LOG = logging.getLogger(__name__)

#: Fields that may differ between the cells of one study: locations, resources and evaluation.
FREE_FIELDS = {
    *("base_model", "output_name", "pruning_ratio", "results_dir", "data_dir", "scores", "overwrite", "dry_run"),
    *("device", "batch_size", "use_gradient_checkpointing", "offload", "spill_dir", "no_bin"),
    *("skip_evaluation", "eval_tasks", "eval_seq_len", "eval_max_windows"),
}


def is_finished(cell: Cell, settings: Mapping[str, Any]) -> bool:
    """Return whether the cell's folder is complete, and its recovered sibling too if recovery is requested."""
    folder = cell.folder(settings["results_dir"])
    recovered = Path(f"{folder}_finetuned") / RECOVERY_REPORT
    return (folder / PRUNING_REPORT).is_file() and (not settings["finetune"] or recovered.is_file())


def differences(cell: Cell, settings: Mapping[str, Any]) -> list[str] | None:
    """List the settings in which an existing cell differs from ``settings``; None if its report has none."""
    try:
        report = read_report_file(cell.folder(settings["results_dir"]) / PRUNING_REPORT, PruningReport)
        arguments = list(dropwhile(lambda word: not word.startswith("--"), shlex.split(report["command"])))
        with contextlib.redirect_stderr(io.StringIO()):
            earlier = {**settings_of(arguments), "importance_method": report["importance_method"]}
    except (OSError, ValueError, KeyError, SystemExit):
        return None
    recovery = {name for name in settings if name.startswith(("finetune", "lora"))}
    free = FREE_FIELDS | (set() if settings["finetune"] and earlier["finetune"] else recovery)
    return [
        f"--{name} {earlier[name]} instead of {value}"
        for name, value in settings.items()
        if name not in free and portable(earlier[name]) != portable(value)
    ]


def check_finished(cells: Sequence[Cell], settings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to resume a study begun with other flags, because its table would mix settings.

    Raises:
        InputError: names the cell and the differences.
    """
    for cell, own in zip(cells, settings, strict=True):
        folder = cell.folder(own["results_dir"])
        if not (folder / PRUNING_REPORT).is_file():
            continue
        different = differences(cell, own)
        if different is None:
            LOG.warning("%s: the report does not record its flags; kept unchanged", cell.output_name)
        elif different:
            raise InputError(
                expected=f"{folder} to have the settings of this study",
                got=", ".join(different),
                remedy="pass the original flags, choose another --results_dir, or remove the folder",
            )


def scores_for(cell: Cell, cells: Sequence[Cell], results_dir: str, settings: Mapping[str, Any]) -> Path | None:
    """Return the scores of a finished cell with the same model and settings, or None."""
    for other in cells:
        scores = other.folder(results_dir) / "scores.npz"
        if other.model == cell.model and scores.is_file() and differences(other, settings) == []:
            return scores
    return None
