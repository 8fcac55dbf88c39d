"""Results found in folders: sizes, perplexities with their protocols, and accuracies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hgsp.console.report_files import EvaluationReport, PruningReport, read_report_file
from hgsp.console.report_schema import (
    AFTER,
    BEFORE,
    DENSE,
    DONE,
    EVALUATION_RESULTS,
    PRUNED,
    PRUNING_REPORT,
    RECOVERED,
    RECOVERY_REPORT,
    ROLES,
    TOKEN_PPL,
)
from hgsp.data.texts import texts_of

#: Keys of a report's scoring section that are not settings.
RESULTS_OF_SCORING = ("base_model", "calibration_loss")
#: Errors raised by reading a damaged or foreign file.
UNREADABLE = (OSError, KeyError, ValueError)
#: Metrics of evaluation/results.json that the table shows besides perplexity.
TASK_METRICS = ("acc", "acc_norm", "target_ppl")


@dataclass(frozen=True, order=True)
class Quantity:
    """A measured quantity; equal ones are comparable. ``detail`` is the part of the protocol that headings omit."""

    metric: str
    task: str
    protocol: str
    detail: str


@dataclass(frozen=True)
class Result:
    """One pruned model, with the model recovered from it, if any.

    ``folder`` holds the pruned model, or the recovered one if the pruned one was not found. ``values`` maps quantity to
    role to number. Sizes are those of the pruned model; ``gqa_ratio`` is query heads per KV head.
    """

    folder: Path
    recovered_folder: Path | None
    model: str  # the dense model's name without owner or folders
    gqa_ratio: float
    method: str
    temperature: float
    calibration: str | None  # texts, sequences x tokens
    seed: int
    asked_ratio: float
    ratio_of: str  # parameters that ``asked_ratio`` is a fraction of
    reached_ratio: float
    reached_ratio_decoder: float | None
    params_before: int
    params: int
    weight_bytes: int
    kv_bytes_per_token: int
    seconds: float
    recovery: str | None
    recovery_seconds: float | None
    scoring: str  # settings that determine the ranking of groups, as JSON
    pruning: str  # report without recovery, as JSON: equal for a pruned folder and those recovered from it
    values: Mapping[Quantity, Mapping[str, float]]

    @property
    def setting(self) -> str:
        """Method and temperature, for headings."""
        return f"{self.method}, T={self.temperature:g}"


@dataclass(frozen=True)
class Skipped:
    """A folder that should hold a result but does not."""

    folder: Path
    reason: str


def collect(roots: Sequence[Path]) -> tuple[list[Result], list[Skipped]]:
    """Return the results below some folders, sorted by model, setting and ratio, and the folders skipped."""
    found: list[Result] = []
    skipped: list[Skipped] = []
    for folder in _candidates(roots):
        reason = _unfinished(folder)
        if reason is None:
            try:
                found.append(read_result(folder))
                continue
            except UNREADABLE as error:
                reason = _describe_error(error)
        skipped.append(Skipped(folder, reason))
    results = [_with_evaluation(result, skipped) for result in _joined(found)]
    return sorted(results, key=lambda r: (r.model, r.setting, r.asked_ratio, str(r.folder))), skipped


def _candidates(roots: Sequence[Path]) -> list[Path]:
    folders = {
        path.parent
        for root in roots
        for name in (PRUNING_REPORT, RECOVERY_REPORT, "prune_plan.json", "pruned_model.bin")
        for path in root.rglob(name)
    }
    for root in roots:
        folders |= {path for pattern in (".*.partial", "*.training") for path in root.rglob(pattern) if path.is_dir()}
    inside = {folder for folder in folders for parent in folder.parents if parent in folders and _unfinished(parent)}
    return sorted(folders - inside)


def _unfinished(folder: Path) -> str | None:
    if folder.name.endswith(".partial"):
        return "unfinished: still being written, or left behind by a killed run"
    if folder.name.endswith(".training"):
        return "unfinished: recovery is running, or was interrupted (continue with --resume)"
    if not (folder / PRUNING_REPORT).is_file():
        return f"no {PRUNING_REPORT}"
    return None


def read_result(folder: Path) -> Result:
    """Read one folder's report.

    Raises:
        OSError, KeyError, ValueError: the report is damaged, foreign, or lacks an entry.
    """
    report = read_report_file(folder / PRUNING_REPORT, PruningReport)
    recovery = report.get("recovery")
    return Result(
        folder=folder,
        recovered_folder=folder if (folder / RECOVERY_REPORT).is_file() else None,
        model=Path(report["base_model"]).name,
        gqa_ratio=float(report["gqa_ratio"]),
        method=str(report["importance_method"]),
        temperature=float(report["scoring"]["temperature"]),
        calibration=_calibration_of(report["scoring"]["calibration"]),
        seed=int(report["scoring"]["seed"]),
        asked_ratio=float(report["asked_ratio"]),
        ratio_of=str(report.get("asked_ratio_of", "all")),
        reached_ratio=float(report["reached_ratio"]),
        reached_ratio_decoder=report.get("reached_ratio_decoder"),
        params_before=int(report["params_before"]),
        params=int(report["params_after"]),
        weight_bytes=int(report["weight_bytes_after"]),
        kv_bytes_per_token=int(report["kv_cache_bytes_per_token_after"]),
        seconds=float(sum(report["timings_s"].values())),
        recovery=None if recovery is None else _recovery_setting(recovery),
        recovery_seconds=None if recovery is None else float(sum(recovery["timings_s"].values())),
        scoring=json.dumps({key: value for key, value in report["scoring"].items() if key not in RESULTS_OF_SCORING}),
        pruning=json.dumps({key: value for key, value in report.items() if key != "recovery"}),
        values=_perplexities(report["evaluation"], {} if recovery is None else recovery["evaluation"]),
    )


def _calibration_of(described: Mapping[str, Any] | None) -> str | None:
    """Describe the calibration text; None for methods that read no text."""
    if described is None:
        return None
    return f"{' + '.join(texts_of(described))}, {described['sequences']} x {described['seq_len']}"


def _recovery_setting(recovery: Mapping[str, Any]) -> str:
    name = {"lora": "LoRA", "full": "all parameters"}[recovery["method"]]
    teacher = ", distilled" if recovery["distilled_from"] is not None else ""
    return f"{name}{teacher}, {recovery['data']['source']}, {recovery['steps']} steps"


def _perplexities(pruning: Mapping[str, Any], recovery: Mapping[str, Any]) -> dict[Quantity, dict[str, float]]:
    values: dict[Quantity, dict[str, float]] = {}
    for role, stage in (
        (DENSE, pruning.get(BEFORE)),
        (PRUNED, pruning.get(AFTER)),
        (PRUNED, recovery.get(BEFORE)),
        (RECOVERED, recovery.get(AFTER)),
    ):
        for text, protocol in (stage or {}).items():
            values.setdefault(perplexity_of(text, protocol), {}).setdefault(role, float(protocol["ppl"]))
    return values


def perplexity_of(text: str, protocol: Mapping[str, Any]) -> Quantity:
    """Identify a perplexity by its protocol.

    A text read to its end counts as ``all`` windows, because their number depends on the tokenizer.
    """
    to_the_end = protocol["tokens"] < protocol["windows"] * (protocol["seq_len"] - (0 if protocol["bos"] else 1))
    windows = "all" if to_the_end else protocol["windows"]
    marks = (" BOS" if protocol["bos"] else "") + ("" if protocol.get("last_window", "scored") == "scored" else " cut")
    detail = f"{protocol['split']}, {protocol['sha256'][:8]}, {protocol['dtype']}"
    return Quantity(TOKEN_PPL, Path(text).name, f"{windows} x {protocol['seq_len']}{marks}", detail)


def _joined(found: Sequence[Result]) -> Iterator[Result]:
    """Merge each recovered folder, which carries the pruned one's report, with its pruned folder."""
    pruned = {result.pruning: result.folder for result in found if result.recovered_folder is None}
    recovered = [result for result in found if result.recovered_folder is not None]
    yield from (replace(result, folder=pruned.get(result.pruning, result.folder)) for result in recovered)
    known = {result.pruning for result in recovered}
    yield from (result for result in found if result.pruning not in known)


def _with_evaluation(result: Result, skipped: list[Skipped]) -> Result:
    """Add the metrics of run_evaluation.py for the pruned and the recovered model."""
    values = {quantity: dict(numbers) for quantity, numbers in result.values.items()}
    sources = [] if result.folder == result.recovered_folder else [(result.folder, {role: role for role in ROLES})]
    if result.recovered_folder is not None:  # its "pruned" is the recovered model
        sources.append((result.recovered_folder, {DENSE: DENSE, PRUNED: RECOVERED}))
    for folder, roles in sources:
        path = folder / "evaluation" / EVALUATION_RESULTS
        try:
            measured = list(table_metrics(read_report_file(path, EvaluationReport))) if path.is_file() else []
        except UNREADABLE as error:
            skipped.append(Skipped(path.parent, f"results.json: {_describe_error(error)}"))
            continue
        for role, quantity, value in measured:
            if role in roles:
                values.setdefault(quantity, {}).setdefault(roles[role], value)
    return replace(result, values=values)


def _describe_error(error: Exception) -> str:
    return f"not readable ({type(error).__name__}: {str(error).partition(chr(10))[0]})"


def table_metrics(content: Mapping[str, Any]) -> Iterator[tuple[str, Quantity, float]]:
    """Yield role, quantity and value of the metrics of a results.json that the table shows."""
    for item in content["results"]:
        if item["status"] != DONE:
            continue
        for metric in item["metrics"]:
            if metric["name"] == TOKEN_PPL:
                yield item["role"], perplexity_of(item["task"], item["protocol"]), float(metric["value"])
            elif metric["name"] in TASK_METRICS:
                quantity = Quantity(metric["name"], item["task"], f"{item['num_items']} items", item["summary"])
                yield item["role"], quantity, float(metric["value"])
