"""The report of a recovery: ``recovery_analysis.json``, the table at the end, and the next command."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from hgsp.console.log_file import show
from hgsp.console.portable_paths import portable
from hgsp.console.report_schema import AFTER, BEFORE, PRUNING_REPORT, RECOVERY_REPORT, RECOVERY_SCHEMA
from hgsp.environment import describe_environment, in_gib, peak_memory_bytes, write_atomically, write_json
from hgsp.evaluation.collapse import before_and_after
from hgsp.pipeline.recovery_config import RecoveryConfig
from hgsp.recovery.outputs import held_out_loss
from hgsp.recovery.training import Trained

LOG = logging.getLogger(__name__)


def got_worse(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the texts whose perplexity is higher after recovery than before."""
    return [name for name, (before, after) in before_and_after(evaluation).items() if after > before]


def warnings_about(evaluation: Mapping[str, Any], trained: Trained, config: RecoveryConfig) -> list[str]:
    """Warn if the recovered model is worse than the pruned one."""
    texts = got_worse(evaluation)
    worse = [f"perplexity on {', '.join(texts)}"] if texts else []
    held_out = held_out_loss(trained)
    if held_out and held_out["kept"] > held_out["first"]:
        worse.append("the held-out loss of every state")
    if not worse:
        return []
    return [
        f"RECOVERY MADE IT WORSE: {' and '.join(worse)} is higher than before. {config.pruned_model} is unchanged; try "
        "a lower --learning_rate, other data, or --distill_from the dense model"
    ]


def next_command(config: RecoveryConfig) -> str:
    """Return the command that measures the pruned and the recovered model side by side."""
    base = config.base_model or config.distill_from
    dense = ["--base_model", base, "--compare"] if base else []
    models = ["--model_path", config.pruned_model, "--recovered_model", config.output_dir, *dense]
    return shlex.join(["python", "evaluation/run_evaluation.py", *models, "--tasks", "wikitext,c4"])


def analysis(
    config: RecoveryConfig,
    trained: Trained,
    *,
    command: str,
    text: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    samples: Mapping[str, str | None],
    timings_s: Mapping[str, float],
    device: str,
    dtype: str,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Return the content of ``recovery_analysis.json``."""
    return {
        "schema_version": RECOVERY_SCHEMA,
        "command": command,
        "pruned_model": config.pruned_model,
        "method": config.method,
        "distilled_from": config.distill_from,
        "settings": asdict(config),
        "data": dict(text),
        "parameters": dict(trained.parameters),
        "steps": trained.steps,
        "kept_step": trained.kept_step,
        "held_out_loss": held_out_loss(trained),
        "evaluation": dict(evaluation),
        "worse_on": got_worse(evaluation),
        "samples": dict(samples),
        "timings_s": {stage: round(seconds, 3) for stage, seconds in timings_s.items()},
        "peak_memory_bytes": peak_memory_bytes(device),
        "environment": describe_environment(device, dtype=dtype, seed=config.seed),
        "warnings": list(warnings),
    }


def write_analysis(content: Mapping[str, Any], pruned_model: str, folder: Path) -> None:
    """Write ``recovery_analysis.json`` and, if there is a pruning report, a copy of it with a recovery section."""
    content = portable(content)
    write_json(content, folder / RECOVERY_REPORT)
    pruned = Path(pruned_model)
    report = (pruned if pruned.is_dir() else pruned.parent) / PRUNING_REPORT
    if report.is_file():
        write_json({**json.loads(report.read_text(encoding="utf-8")), "recovery": content}, folder / PRUNING_REPORT)


def add_to_report(pruned: Path, recovered: Path) -> None:
    """Add the recovery section to the report of the pruned model itself."""
    write_atomically(pruned / PRUNING_REPORT, (recovered / PRUNING_REPORT).read_text(encoding="utf-8"))


def summary_table(content: Mapping[str, Any]) -> Table:
    """Return the table of the pruned and the recovered model."""
    table = Table(title=f"{Path(content['pruned_model']).name}: recovered by {_method(content)}", min_width=80)
    for heading in ("", "pruned", "recovered", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    if content["held_out_loss"]:
        first, kept = content["held_out_loss"]["first"], content["held_out_loss"]["kept"]
        table.add_row("held-out loss (first, kept)", f"{first:.4f}", f"{kept:.4f}", f"{kept - first:+.4f}")
    measured = content["evaluation"]
    for name, result in measured.get(AFTER, {}).items():
        before = measured[BEFORE][name]["ppl"]
        label = f"PPL {name} ({result['windows']} x {result['seq_len']})"
        table.add_row(label, f"{before:.2f}", f"{result['ppl']:.2f}", f"x {result['ppl'] / before:.3f}")
    parameters, data = content["parameters"], content["data"]
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in content["timings_s"].items())
    table.caption = (
        f"{parameters['trained']:,} of {parameters['model']:,} parameters trained; {content['steps']} steps, step "
        f"{content['kept_step']} kept; {data['train_sequences']} sequences, {data['train_tokens']:,} tokens of "
        f"{data['source']}, learned: {data['learned']}\n"
        f"seconds: {seconds}; peak memory {in_gib(content['peak_memory_bytes'])}"
    )
    table.caption_justify = "left"
    return table


def _method(content: Mapping[str, Any]) -> str:
    name = {"lora": "LoRA", "full": "training all parameters"}[content["method"]]
    return name if content["distilled_from"] is None else f"{name}, distilled from {content['distilled_from']}"


def show_report(content: Mapping[str, Any], config: RecoveryConfig) -> None:
    """Log the warnings, the table, the result folder and the next command."""
    for warning in content["warnings"]:
        LOG.warning("%s", warning)
    show(summary_table(content))
    LOG.info("result: %s\nnext: %s", config.output_dir, next_command(config))
