"""The report of a recovery: ``recovery_analysis.json``, the table at the end, and the next command."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from hgsp.console.json_files import read_json_file
from hgsp.console.log_file import show
from hgsp.console.portable_paths import portable
from hgsp.console.report_files import PruningReport
from hgsp.console.report_schema import AFTER, BEFORE, PRUNING_REPORT, RECOVERY_REPORT, RECOVERY_SCHEMA
from hgsp.console.tables import format_number, new_table
from hgsp.environment import describe_environment, in_gib, peak_memory_bytes, write_atomically, write_json
from hgsp.errors import InputError
from hgsp.evaluation.collapse import before_and_after
from hgsp.evaluation.pre_post import continuation
from hgsp.evaluation.verdict import Verdict, judge
from hgsp.pipeline.next_steps import after_recovery
from hgsp.pipeline.recovery_config import RecoveryConfig
from hgsp.recovery.outputs import held_out_loss
from hgsp.recovery.probe import best_rate
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


def analysis(
    config: RecoveryConfig,
    trained: Trained,
    *,
    pruning_report: Mapping[str, Any],
    command: str,
    text: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    samples: Mapping[str, Any],
    timings_s: Mapping[str, float],
    device: str,
    dtype: str,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Return the content of ``recovery_analysis.json``."""
    verdict = _verdict(pruning_report, evaluation, samples.get(AFTER))
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
        "learning_rate": best_rate(trained.probes) if trained.probes else config.learning_rate,
        "probes": [asdict(tried) for tried in trained.probes],
        "held_out_loss": held_out_loss(trained),
        "evaluation": dict(evaluation),
        "worse_on": got_worse(evaluation),
        "verdict": verdict and asdict(verdict),
        "samples": dict(samples),
        "timings_s": {stage: round(seconds, 3) for stage, seconds in timings_s.items()},
        "peak_memory_bytes": peak_memory_bytes(device),
        "environment": describe_environment(device, dtype=dtype, seed=config.seed),
        "warnings": list(warnings),
    }


#: Keys of a pruning report that a recovery reads.
_REQUIRED = (
    *("command", "base_model", "importance_method", "asked_ratio", "reached_ratio", "reached_ratio_decoder"),
    *(f"{size}_{when}" for size in ("params", "weight_bytes", "kv_cache_bytes_per_token") for when in (BEFORE, AFTER)),
    *("layers", "evaluation"),
)


def read_pruning_report(pruned_model: str) -> Mapping[str, Any]:
    """Return the pruning report beside a model, empty without one.

    Raises:
        InputError: it is damaged or incomplete.
    """
    pruned = Path(pruned_model)
    path = (pruned if pruned.is_dir() else pruned.parent) / PRUNING_REPORT
    if not path.is_file():
        return {}
    expected, remedy = "the pruning report beside the model, or none", "delete the file: the recovery does not need it"
    content: Mapping[str, Any] = read_json_file(path, PruningReport, expected, remedy)
    if missing := [key for key in _REQUIRED if key not in content]:
        raise InputError(expected=expected, got=f"{path}, without {', '.join(missing)}", remedy=remedy)
    return content


def write_analysis(content: Mapping[str, Any], pruning_report: Mapping[str, Any], folder: Path) -> None:
    """Write ``recovery_analysis.json`` and, if there is a pruning report, a copy of it with a recovery section."""
    content = portable(content)
    write_json(content, folder / RECOVERY_REPORT)
    if pruning_report:
        write_json({**pruning_report, "recovery": content}, folder / PRUNING_REPORT)


def _verdict(pruning: Mapping[str, Any], evaluation: Mapping[str, Any], sample: str | None) -> Verdict | None:
    """Judge the recovered model by the dense one's measurements in the pruning report; None without one."""
    pairs = {}
    for name, result in evaluation.get(AFTER, {}).items():
        dense = pruning.get("evaluation", {}).get(BEFORE, {}).get(name, {})
        if all(dense.get(key) == result[key] for key in ("sha256", "seq_len", "windows", "tokens")):
            pairs[name] = (dense["ppl"], result["ppl"])
    dense_sample = pruning.get("samples", {}).get(BEFORE)
    return judge(pairs, samples=(continuation(dense_sample), continuation(sample))) if pairs else None


def curve_title(config: RecoveryConfig, pruning: Mapping[str, Any]) -> str:
    """Return the title of the loss curve: the model, the ratio removed from it if known, and the training."""
    name = Path(pruning.get("base_model", config.pruned_model)).name
    ratio = f", {pruning['reached_ratio']:.1%} of parameters removed" if "reached_ratio" in pruning else ""
    return f"{name}{ratio}: {_method({'method': config.method, 'distilled_from': config.distill_from})}"


def add_to_report(pruned: Path, recovered: Path) -> None:
    """Add the recovery section to the report of the pruned model itself."""
    write_atomically(pruned / PRUNING_REPORT, (recovered / PRUNING_REPORT).read_text(encoding="utf-8"))


def summary_table(content: Mapping[str, Any]) -> Table:
    """Return the table of the pruned and the recovered model."""
    title = f"{Path(content['pruned_model']).name}: recovered by {_method(content)}"
    table = new_table(title, "", "pruned", "recovered", "change")
    if content["held_out_loss"]:
        first, kept = content["held_out_loss"]["first"], content["held_out_loss"]["kept"]
        table.add_row("held-out loss (first, kept)", f"{first:.4f}", f"{kept:.4f}", f"{kept - first:+.4f}")
    measured = content["evaluation"]
    for name, result in measured.get(AFTER, {}).items():
        before = measured[BEFORE][name]["ppl"]
        label = f"PPL {name} ({result['windows']} x {result['seq_len']})"
        change = f"x {format_number(result['ppl'] / before, 3)}"
        table.add_row(label, format_number(before), format_number(result["ppl"]), change)
    parameters, data = content["parameters"], content["data"]
    tried = content["probes"]
    chosen = f"; learning rate {content['learning_rate']:g}, the best of {len(tried)} tried" if tried else ""
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in content["timings_s"].items())
    table.caption = (
        f"{parameters['trained']:,} of {parameters['model']:,} parameters trained; {content['steps']} steps, step "
        f"{content['kept_step']} kept; {data['train_sequences']} sequences, {data['train_tokens']:,} tokens of "
        f"{data['source']}, learned: {data['learned']}{chosen}\n"
        f"seconds: {seconds}; peak memory {in_gib(content['peak_memory_bytes'])}"
    )
    return table


def _method(content: Mapping[str, Any]) -> str:
    name = {"lora": "LoRA", "full": "training all parameters"}[content["method"]]
    return name if content["distilled_from"] is None else f"{name}, distilled from {content['distilled_from']}"


def show_report(content: Mapping[str, Any], config: RecoveryConfig) -> None:
    """Log the warnings, the table, the verdict, the result folder and the next command."""
    for warning in content["warnings"]:
        LOG.warning("%s", warning)
    show(summary_table(content))
    if content["verdict"] is not None:
        LOG.info("verdict: %(name)s: %(reason)s", content["verdict"])
    LOG.info("result: %s", config.output_dir)
    LOG.info("next: %s", after_recovery(config, content["environment"]["device"]))
