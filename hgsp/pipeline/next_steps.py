"""The commands that come next, which work where this run did: offline they name nothing from a hub."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hgsp.console.programs import program
from hgsp.console.report_schema import LAMBADA
from hgsp.data.texts import BUILTIN
from hgsp.evaluation.config import CPU_EVAL_WINDOWS, MeasureConfig
from hgsp.evaluation.tasks import EFFICIENCY
from hgsp.evaluation.verdict import USABLE
from hgsp.pipeline.config import PruneConfig
from hgsp.recovery.config import DEFAULT_INSTRUCTIONS

#: Environment variables with which the libraries of the hub stay offline.
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def is_offline(base_model: str, texts: Sequence[str], data_dir: str | None) -> bool:
    """Return whether a run may have been offline: the hub is switched off, or nothing that it read needs one."""
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE_VARIABLES):
        return True
    local_texts = bool(data_dir or os.environ.get("HGSP_DATA_DIR"))
    return Path(base_model).exists() and all(local_texts or _is_local(text) for text in texts)


def _is_local(text: str) -> bool:
    return text == BUILTIN or Path(text).is_file()


def after_pruning(config: PruneConfig, folder: Path, verdict: str | None, device: str) -> list[str]:
    """Return the next commands of a pruned model: recovery first unless it is usable, then its evaluation.

    Args:
        verdict: name of the verdict, None if nothing was measured.
        device: that the run computed on.
    """
    texts = config.datasets if config.reads_text else ()
    offline = is_offline(config.base_model, (*texts, *config.evaluation_texts), config.data_dir)
    commands = []
    if verdict not in (None, USABLE) and not config.finetune:
        commands.append(_recovery(config, folder, ",".join(texts or (BUILTIN,)) if offline else DEFAULT_INSTRUCTIONS))
    measured = list(config.evaluation_texts or texts) or [BUILTIN]
    extra = [EFFICIENCY] if offline else [LAMBADA, EFFICIENCY]
    models = ["--model_path", str(folder), "--base_model", config.base_model, "--compare"]
    return [*commands, shlex.join(_evaluation(config, models, [*measured, *extra], device))]


def _recovery(config: PruneConfig, folder: Path, data_path: str) -> str:
    """Return the command that trains on instructions, or on plain texts with the dense model as teacher."""
    words = [*program("finetune"), "--pruned_model", str(folder), "--output_dir", f"{folder}_finetuned"]
    words += ["--data_path", data_path]
    if data_path != DEFAULT_INSTRUCTIONS:
        words += ["--distill_from", config.base_model]
    words += ["--eval_tasks", config.eval_tasks] if config.evaluation_texts else []
    return shlex.join([*words, *_settings(config)])


def after_recovery(config: Any, device: str) -> str:
    """Return the command that measures the pruned and the recovered model side by side.

    Args:
        config: a ``RecoveryConfig``.
        device: that the run computed on.
    """
    base = config.base_model or config.distill_from
    dense = ["--base_model", base, "--compare"] if base else []
    models = ["--model_path", config.pruned_model, "--recovered_model", config.output_dir, *dense]
    return shlex.join(_evaluation(config, models, list(config.evaluation_texts) or [BUILTIN], device))


def _evaluation(config: MeasureConfig, models: list[str], tasks: list[str], device: str) -> list[str]:
    words = [*program("evaluate"), *models, "--tasks", ",".join(dict.fromkeys(tasks))]
    windows = config.eval_max_windows or (CPU_EVAL_WINDOWS if device == "cpu" else None)
    words += [] if windows is None else ["--max_windows", str(windows)]
    words += [] if config.eval_seq_len is None else ["--seq_len", str(config.eval_seq_len)]
    return [*words, *_settings(config)]


def _settings(config: Any) -> list[str]:
    """Return the flags for the places of a run, where it was given some."""
    given = {"--data_dir": config.data_dir, "--device": config.device}
    return [word for flag, value in given.items() if value not in (None, "auto") for word in (flag, value)]
