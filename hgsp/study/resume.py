"""Existing cells: whether they are finished, have the same settings, and hold scores to reuse."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from hgsp.console.flags import parse
from hgsp.console.report_schema import PRUNING_REPORT, RECOVERY_REPORT
from hgsp.errors import InputError
from hgsp.pipeline.config import PruneConfig
from hgsp.study.matrix import Cell

LOG = logging.getLogger(__name__)

#: Fields that may differ between the cells of one study: locations, resources and evaluation.
FREE_FIELDS = {
    *("base_model", "output_name", "pruning_ratio", "results_dir", "data_dir", "scores", "overwrite", "dry_run"),
    *("device", "batch_size", "use_gradient_checkpointing", "offload", "spill_dir", "no_bin"),
    *("skip_evaluation", "eval_tasks", "eval_seq_len", "eval_max_windows"),
}


def is_finished(cell: Cell, config: PruneConfig) -> bool:
    """Return whether the cell's folder is complete, and its recovered sibling too if recovery is requested."""
    folder = cell.folder(config.results_dir)
    recovered = Path(f"{folder}_finetuned") / RECOVERY_REPORT
    return (folder / PRUNING_REPORT).is_file() and (not config.finetune or recovered.is_file())


def differences(cell: Cell, config: PruneConfig) -> list[str] | None:
    """List the settings in which an existing cell differs from ``config``; None if its report does not record them."""
    try:
        report = json.loads((cell.folder(config.results_dir) / PRUNING_REPORT).read_text())
        arguments = shlex.split(report["command"])[1:]
        with contextlib.redirect_stderr(io.StringIO()):
            earlier = parse(PruneConfig, arguments, prog=None, description="")
        earlier = dataclasses.replace(earlier, importance_method=report["importance_method"])
    except (OSError, ValueError, KeyError, TypeError, SystemExit):
        return None
    recovery = {name for name in _names(config) if name.startswith(("finetune", "lora"))}
    free = FREE_FIELDS | (set() if config.finetune and earlier.finetune else recovery)
    return [
        f"--{name} {getattr(earlier, name)} instead of {getattr(config, name)}"
        for name in _names(config)
        if name not in free and getattr(earlier, name) != getattr(config, name)
    ]


def _names(config: PruneConfig) -> list[str]:
    return [item.name for item in dataclasses.fields(config)]


def check_finished(cells: Sequence[Cell], configs: Sequence[PruneConfig]) -> None:
    """Refuse to resume a study begun with other flags, because its table would mix settings.

    Raises:
        InputError: names the cell and the differences.
    """
    for cell, config in zip(cells, configs, strict=True):
        if not (cell.folder(config.results_dir) / PRUNING_REPORT).is_file():
            continue
        different = differences(cell, config)
        if different is None:
            LOG.warning("%s: the report does not record its flags; kept unchanged", cell.output_name)
        elif different:
            raise InputError(
                expected=f"{cell.folder(config.results_dir)} to have the settings of this study",
                got=", ".join(different),
                remedy="pass the original flags, choose another --results_dir, or remove the folder",
            )


def scores_for(cell: Cell, cells: Sequence[Cell], results_dir: str, config: PruneConfig) -> Path | None:
    """Return the scores of a finished cell with the same model and settings, or None."""
    for other in cells:
        scores = other.folder(results_dir) / "scores.npz"
        if other.model == cell.model and scores.is_file() and differences(other, config) == []:
            return scores
    return None
