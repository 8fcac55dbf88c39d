"""What recovery leaves behind: a merged checkpoint, the adapter, the loss curve and what it was worth."""

from __future__ import annotations

import csv
import json
import logging
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from hgsp.console.log_file import show
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.loading import DTYPES
from hgsp.pipeline.report import environment, peak_memory_bytes, write_json
from hgsp.recovery.config import RecoveryConfig
from hgsp.recovery.training import Trained

LOG = logging.getLogger(__name__)

SCHEMA_VERSION = 1
ANALYSIS = "recovery_analysis.json"
PRUNING_ANALYSIS = "pruning_analysis.json"
CURVE_COLUMNS = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")


def recovered_model(config: RecoveryConfig, trained: Trained, dtype: torch.dtype, device: str) -> Any:
    """The trained model in ``dtype`` with stock tensors: the adapter is merged into freshly read weights."""
    if config.method == "full":
        return load_pruned(trained.checkpoint, device=device, dtype=dtype)
    from peft import PeftModel

    model = load_pruned(config.pruned_model, device=device, dtype=dtype)
    adapted = PeftModel.from_pretrained(model, str(trained.checkpoint))
    return adapted.merge_and_unload(safe_merge=True).requires_grad_(False).eval()


def write_result(model: Any, tokenizer: Any, config: RecoveryConfig, trained: Trained, folder: Path) -> None:
    """Checkpoint, ``.bin``, adapter and loss curve, into an existing folder."""
    save_pruned(model, tokenizer, folder, with_bin=not config.no_bin)
    if config.method == "lora":
        (folder / "adapter").mkdir()
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copyfile(trained.checkpoint / name, folder / "adapter" / name)
    runs = trained.checkpoint.parent / "runs"
    if runs.is_dir():
        shutil.copytree(runs, folder / "runs")
    rows = loss_curve(trained.history)
    with (folder / "loss_curve.csv").open("w", newline="") as sink:
        writer = csv.DictWriter(sink, CURVE_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    plot_losses(rows, folder / "loss_curve.png")


def loss_curve(history: Sequence[Mapping[str, float]]) -> list[dict[str, float | str]]:
    """One row per step; empty where a step was not measured."""
    rows: dict[float, dict[str, float | str]] = {}
    for entry in history:
        if "loss" in entry or "eval_loss" in entry:
            row = rows.setdefault(entry["step"], dict.fromkeys(CURVE_COLUMNS, ""))
            row.update({name: entry[name] for name in CURVE_COLUMNS if name in entry})
    return [rows[step] for step in sorted(rows)]


def plot_losses(rows: Sequence[Mapping[str, float | str]], path: Path) -> None:
    """Training and held-out loss over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label, marker in (("loss", "training", None), ("eval_loss", "held out", "o")):
        points = [(row["step"], row[name]) for row in rows if row[name] != ""]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=4)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.legend()
    figure.savefig(path, dpi=120)


def got_worse(evaluation: Mapping[str, Any]) -> list[str]:
    """Texts whose perplexity is higher after recovery than before."""
    before, after = evaluation.get("before", {}), evaluation.get("after", {})
    return [name for name in after if after[name]["ppl"] > before[name]["ppl"]]


def held_out_loss(trained: Trained) -> dict[str, float] | None:
    """Before training and of the state that was kept; None where nothing was held out."""
    measured = {entry["step"]: entry["eval_loss"] for entry in trained.history if "eval_loss" in entry}
    return {"first": measured[0], "kept": measured[trained.kept_step]} if measured else None


def warnings_about(evaluation: Mapping[str, Any], trained: Trained, config: RecoveryConfig) -> list[str]:
    """Loud when training did harm: the user must not take the recovered model for the better one."""
    texts = got_worse(evaluation)
    worse = [f"perplexity on {', '.join(texts)}"] if texts else []
    held_out = held_out_loss(trained)
    if held_out and held_out["kept"] > held_out["first"]:
        worse.append("the held-out loss of every state")
    if not worse:
        return []
    return [
        f"RECOVERY MADE IT WORSE: {' and '.join(worse)} is higher than before. {config.pruned_model} is as it was; try "
        "a lower --learning_rate, other data, or --distill_from the dense model"
    ]


def next_command(config: RecoveryConfig) -> str:
    """How to measure the result beside what it was."""
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
    """The content of ``recovery_analysis.json``."""
    return {
        "schema_version": SCHEMA_VERSION,
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
        "environment": environment(device, dtype, config.seed),
        "warnings": list(warnings),
    }


def write_analysis(content: Mapping[str, Any], pruned_model: str, folder: Path) -> None:
    """``recovery_analysis.json``, and a copy of the pruning report, where there is one, with a recovery section."""
    write_json(content, folder / ANALYSIS)
    pruned = Path(pruned_model)
    report = (pruned if pruned.is_dir() else pruned.parent) / PRUNING_ANALYSIS
    if report.is_file():
        write_json({**json.loads(report.read_text()), "recovery": content}, folder / PRUNING_ANALYSIS)


def add_to_report(pruned: Path, recovered: Path) -> None:
    """Give the pruned model's own report the recovery section too."""
    temporary = pruned / f".{PRUNING_ANALYSIS}"
    shutil.copyfile(recovered / PRUNING_ANALYSIS, temporary)
    temporary.replace(pruned / PRUNING_ANALYSIS)


def closing_table(content: Mapping[str, Any]) -> Table:
    """Pruned and recovered, side by side."""
    table = Table(title=f"{Path(content['pruned_model']).name}: recovered by {_method(content)}", min_width=80)
    for heading in ("", "pruned", "recovered", "change"):
        table.add_column(heading, justify="left" if not heading else "right")
    if content["held_out_loss"]:
        first, kept = content["held_out_loss"]["first"], content["held_out_loss"]["kept"]
        table.add_row("held-out loss (first, kept)", f"{first:.4f}", f"{kept:.4f}", f"{kept - first:+.4f}")
    measured = content["evaluation"]
    for name, result in measured.get("after", {}).items():
        before = measured["before"][name]["ppl"]
        label = f"PPL {name} ({result['windows']} x {result['seq_len']})"
        table.add_row(label, f"{before:.2f}", f"{result['ppl']:.2f}", f"x {result['ppl'] / before:.3f}")
    parameters, data = content["parameters"], content["data"]
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in content["timings_s"].items())
    table.caption = (
        f"{parameters['trained']:,} of {parameters['model']:,} parameters trained; {content['steps']} steps, step "
        f"{content['kept_step']} kept; {data['train_sequences']} sequences, {data['train_tokens']:,} tokens of "
        f"{data['source']}, learned: {data['learned']}\n"
        f"seconds: {seconds}; peak memory {content['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    table.caption_justify = "left"
    return table


def _method(content: Mapping[str, Any]) -> str:
    name = {"lora": "LoRA", "full": "training all parameters"}[content["method"]]
    return name if content["distilled_from"] is None else f"{name}, distilled from {content['distilled_from']}"


def tell(content: Mapping[str, Any], config: RecoveryConfig) -> None:
    """Warnings, the table, where the result is and what to do next."""
    for warning in content["warnings"]:
        LOG.warning("%s", warning)
    show(closing_table(content))
    LOG.info("result: %s\nnext: %s", config.output_dir, next_command(config))


def padding_token(tokenizer: Any, num_embeddings: int) -> int:
    """Return the id that fills a batch: the padding token if the model has a row for it, else the end of text.

    It is masked everywhere; no vocabulary grows.
    """
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None or pad >= num_embeddings else pad)


def stored_dtype(config: RecoveryConfig, model_config: Any) -> torch.dtype:
    """The dtype the result is written in: asked for, or that of the pruned model."""
    if config.dtype is not None:
        return DTYPES[config.dtype]
    stored = getattr(model_config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.float32
