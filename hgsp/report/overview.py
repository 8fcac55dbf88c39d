"""The beginning of a report: title, verdict, main numbers, warnings, and how the result was made."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hgsp.console.report_schema import ROLES
from hgsp.report.content import Card, Code, LeftOut, Section, Table, Text
from hgsp.report.formats import change, percent, perplexity, seconds, significant, times, with_prefix
from hgsp.report.measured import perplexities
from hgsp.report.sources import Record, Sources

#: Sizes of a model: label, key of the report without its suffix, unit.
SIZES = (
    ("parameters", "params", ""),
    ("weights", "weight_bytes", "B"),
    ("KV cache per token", "kv_cache_bytes_per_token", "B"),
)


def title_of(sources: Sources) -> str:
    """Return the model's name and how it was changed."""
    if sources.pruning is None:
        return f"{model_of(sources)}: {'recovery' if sources.recovery is not None else 'evaluation'}"
    ratio = percent(sources.pruning["reached_ratio"])
    return f"{model_of(sources)}: {ratio} of all parameters removed" + ", recovered" * (sources.recovery is not None)


def label_of(sources: Sources) -> str:
    """Return the model and the removed ratio, short enough for every figure."""
    ratio = "" if sources.pruning is None else f", {percent(sources.pruning['reached_ratio'])} removed"
    return f"{model_of(sources)}{ratio}"


def model_of(sources: Sources) -> str:
    """Return the name of the dense model without owner or folders, else that of the measured one or of the folder."""
    name = str(sources.folder.resolve())
    if sources.pruning is not None:
        name = sources.pruning["base_model"]
    elif sources.recovery is not None:
        name = sources.recovery.get("pruned_model", name)
    elif sources.evaluation is not None:
        models = sources.evaluation.get("models", {})
        name = next((models[role]["path"] for role in ROLES if role in models), name)
    return Path(name).name


def verdict_of(sources: Sources) -> str | None:
    """Return the verdict of the last step that has one, in words."""
    for report in (sources.recovery, sources.pruning):
        verdict = None if report is None else report.get("verdict")
        if verdict:
            return ": ".join(map(str, verdict.values())) if isinstance(verdict, dict) else str(verdict)
        if report is not None and report.get("collapsed"):
            return "collapsed: perplexity grew so much that the model is useless as it is"
    return None


def warnings_of(sources: Sources) -> list[str]:
    """Return the warnings of all steps, each once."""
    reports = (sources.pruning, sources.recovery, sources.evaluation)
    return list(dict.fromkeys(str(text) for report in reports if report for text in report.get("warnings", ())))


def cards_of(sources: Sources) -> list[Card]:
    """Return the numbers that a reader looks for first."""
    cards = []
    report = sources.pruning or Record()
    for label, key, unit in SIZES:
        if report.keys() >= {f"{key}_before", f"{key}_after"}:
            before, after = report[f"{key}_before"], report[f"{key}_after"]
            shown = f"{with_prefix(before, unit)} → {with_prefix(after, unit)}"
            cards.append(Card(label, shown, change(before, after)))
    try:
        measured = perplexities(sources)
    except LeftOut:  # an older protocol; the section says so
        measured = {}
    for (text, _), values in measured.items():
        found = [(role, values[role][0]) for role in ROLES if role in values]
        if len(found) > 1:
            shown = " → ".join(perplexity(value) for _, value in found)
            cards.append(Card(f"perplexity, {text}", shown, times(found[0][1], found[-1][1])))
    return cards


def size_section(sources: Sources) -> Section:
    """Return sizes before and after, and the fractions removed."""
    report = sources.of_pruning()
    rows = []
    for label, key, unit in SIZES:
        before, after = report[f"{key}_before"], report[f"{key}_after"]
        shown = (f"{value:,} {unit}".rstrip() for value in (before, after))
        rows.append((label, *shown, change(before, after)))
    removed = ", ".join(map(str, report["removed_layers"])) or "none"
    text = (
        f"Removed: {percent(report['reached_ratio'])} of all parameters, "
        f"{percent(report['reached_ratio_decoder'])} of those of the decoder layers. "
        f"{report['gqa_ratio']:g} query heads share a KV head, before and after. Layers removed as a whole: {removed}."
    )
    return Section("Size", (Table(("", "before", "after", "change"), rows), Text(text)))


def command_section(sources: Sources) -> Section:
    """Return the steps that led to the result, with the commands that repeat them."""
    parts: list[Any] = []
    if (report := sources.pruning) is not None:
        parts += [Text(_pruning_in_words(report)), Code(as_lines(report["command"]))]
    if (report := sources.recovery) is not None:
        parts += [Text(_recovery_in_words(report)), Code(as_lines(report["command"]))]
    if (report := sources.evaluation) is not None and "command" in report:
        parts += [Text("Measured by (the last run that added results):"), Code(as_lines(report["command"]))]
    return Section("How it was made", parts)


def as_lines(command: str, width: int = 88) -> str:
    """Break a command before its flags into lines that a shell continues."""
    lines = [""]
    for word in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(f"  {word}")
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return " \\\n".join(lines)


def _pruning_in_words(report: Mapping[str, Any]) -> str:
    scoring = report["scoring"]
    words = [
        f"{Path(report['base_model']).name} was pruned with importance method {report['importance_method']}",
        f"H-GSP temperature {scoring['temperature']:g}",
        f"ratio asked for {percent(report['asked_ratio'])}",
    ]
    if scoring.get("calibration"):
        words.append(f"calibrated on {_text_in_words(scoring['calibration'])}")
    if report.get("search"):
        words.append(f"budget search of {report['search']['steps']} steps")
    if report.get("reconstruction"):
        calibration = _text_in_words(report["reconstruction"]["calibration"])
        words.append(f"reconstructed ({report['reconstruction']['method']}) on {calibration}")
    return "; ".join(words) + "."


def _text_in_words(described: Mapping[str, Any]) -> str:
    return f"{described['source']} ({described['sequences']} sequences of {described['seq_len']} tokens)"


def _recovery_in_words(report: Mapping[str, Any]) -> str:
    name = {"lora": "LoRA", "full": "training of all parameters"}[report["method"]]
    teacher = f", distilled from {report['distilled_from']}" if report.get("distilled_from") else ""
    data, parameters = report["data"], report["parameters"]
    return (
        f"Recovered by {name}{teacher}: {parameters['trained']:,} of {parameters['model']:,} parameters trained in "
        f"{report['steps']} steps on {data['train_sequences']} sequences of {data['source']}; the state of step "
        f"{report['kept_step']} was kept."
    )


def environment_section(sources: Sources) -> Section:
    """Return settings, versions, hardware, and the seconds and memory of every step."""
    parts: list[Any] = []
    for name, report in (("pruning", sources.pruning), ("recovery", sources.recovery)):
        if report is None:
            continue
        memory = report.get("peak_memory_bytes")
        rows = [(stage, seconds(value)) for stage, value in report["timings_s"].items()]
        rows.append(("all stages", seconds(sum(report["timings_s"].values()))))
        if memory is not None:
            rows.append(("peak memory of the process", with_prefix(memory, "B")))
        parts.append(Table((f"{name}: stage", "measured"), rows))
    described = next(report for report in (sources.recovery, sources.pruning, sources.evaluation) if report is not None)
    parts.append(Table(("environment", ""), list(_flat(described["environment"]))))
    if sources.pruning is not None:
        parts.append(Table(("scoring", ""), list(_flat(sources.pruning["scoring"]))))
    return Section("Settings, time and memory", parts)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names and values of nested settings, without those that are unset."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}, ")
        elif value is not None:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{prefix}{name}", f"{significant(shown, 6)}" if isinstance(shown, float) else str(shown)
