"""Sections of measured quality: perplexity, tasks with their standard errors, speed and memory, samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hgsp.console.report_schema import AFTER, BEFORE, DENSE, DONE, FAILED, PRUNED, RECOVERED, ROLES, TOKEN_PPL
from hgsp.report.axes import linear_axis, names_axis, value_axis
from hgsp.report.charts import Panel, Series, draw, legend_of
from hgsp.report.content import Figure, LeftOut, Sample, Section, Table, Text
from hgsp.report.formats import accuracy, perplexity, signed, significant, times, with_prefix
from hgsp.report.sources import Record, Sources

STYLE_OF_ROLE = {DENSE: "s0", PRUNED: "s1", RECOVERED: "s2"}
#: Height of a row of points in user units, and the distance between its series as a fraction of that.
ROW_HEIGHT, DODGE = 36, 0.26
ACCURACIES = ("acc", "acc_norm")
#: Metrics of the task ``efficiency``: how their names start, and what they measure.
EFFICIENCY = {"prefill_ms": "prefill", "decode_ms": "decode step"}

#: A value with its standard error.
Measured = tuple[float, float | None]
#: Text and protocol -> role -> perplexity.
Perplexities = dict[tuple[str, str], dict[str, Measured]]


def perplexities(sources: Sources) -> Perplexities:
    """Return the perplexities of all steps; equal protocols are one row."""
    found: Perplexities = {}

    def add(text: str, role: str, value: float, stderr: float | None, measured: Mapping[str, Any]) -> None:
        found.setdefault((text, _protocol(measured)), {}).setdefault(role, (value, stderr))

    for report, roles in ((sources.pruning, (DENSE, PRUNED)), (sources.recovery, (PRUNED, RECOVERED))):
        for stage, role in zip((BEFORE, AFTER), roles, strict=True):
            for text, measured in ((report or Record()).get("evaluation") or Record()).get(stage, {}).items():
                add(text, role, measured["ppl"], measured.get("stderr"), measured)
    for role, item, metric in task_metrics(sources):
        if metric["name"] == TOKEN_PPL:
            add(item["task"], role, metric["value"], metric.get("stderr"), item["protocol"])
    return found


def _protocol(measured: Mapping[str, Any]) -> str:
    """Describe what makes perplexities comparable."""
    bos = ", BOS first" if measured.get("bos") else ""
    return (
        f"{measured['split']}, {measured['windows']} × {measured['seq_len']} tokens{bos}, {measured['dtype']}, "
        f"sha256 {measured['sha256'][:8]}"
    )


def task_metrics(sources: Sources) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield (role, result, metric) of the finished tasks of an evaluation."""
    for item in (sources.evaluation or Record()).get("results", ()):
        if item["status"] == DONE:
            for metric in item["metrics"]:
                yield sources.role_of(item), item, metric


def perplexity_section(sources: Sources) -> Section:
    """Return perplexities as table and chart."""
    found = perplexities(sources)
    if not found:
        raise LeftOut("no perplexity was measured (--skip_evaluation, or no evaluation so far)")
    roles = [role for role in ROLES if any(role in values for values in found.values())]
    texts = [text for text, _ in found]
    names = [f"{text} ({place})" if texts.count(text) > 1 else text for place, text in enumerate(texts, 1)]
    others = [role for role in roles if role != DENSE and DENSE in roles]
    rows = []
    for name, values in zip(names, found.values(), strict=True):
        dense = values.get(DENSE, (0.0, None))[0]
        shown = [perplexity(*values[role]) if role in values else "" for role in roles]
        rows.append((name, *shown, *(times(dense, values[role][0]) if role in values else "" for role in others)))
    table = Table(("text", *roles, *(f"{role} / dense" for role in others)), rows)
    points = points_of(roles, found.values())
    note = "Lower is better. ± is one standard error over windows. Only equal protocols are comparable. "
    protocols = "; ".join(f"{name}: {protocol}" for name, (_, protocol) in zip(names, found, strict=True))
    figure = _dots("Perplexity", "perplexity (lower is better)", names, points)
    return Section("Perplexity", (table, figure, Text(f"{note}{protocols}.")))


def points_of(roles: Sequence[str], rows: Iterable[Mapping[str, Measured]]) -> dict[str, list[tuple[Measured, int]]]:
    """Return role -> (value, row) pairs."""
    rows = list(rows)
    return {role: [(values[role], row) for row, values in enumerate(rows) if role in values] for role in roles}


def dot_series(points: Mapping[str, Sequence[tuple[Measured, int]]]) -> list[Series]:
    """Return a series for each role, a little above or below the middle of its rows so that none hides another."""
    present = {role: placed for role, placed in points.items() if placed}
    return [
        Series(
            role,
            STYLE_OF_ROLE[role],
            [(value, DODGE * ((len(present) - 1) / 2 - number) - row) for (value, _), row in placed],
            is_line=False,
            errors=[error for (_, error), _ in placed],
        )
        for number, (role, placed) in enumerate(present.items())
    ]


def reach_of(points: Mapping[str, Sequence[tuple[Measured, int]]]) -> list[float]:
    """Return the ends of all error bars."""
    values = [measured for placed in points.values() for measured, _ in placed]
    return [value + sign * (error or 0) for value, error in values for sign in (-1, 1)]


def _dots(
    title: str,
    label: str,
    names: Sequence[str],
    points: Mapping[str, Sequence[tuple[Measured, int]]],
    *,
    note: str = "",
) -> Figure:
    """Draw one row of points for each name, with one standard error to both sides."""
    series = dot_series(points)
    panel = Panel(value_axis(label, reach_of(points)), names_axis(names), series, height=ROW_HEIGHT * len(names) + 10)
    rows = [
        (role, names[row], significant(value, 4), "" if error is None else significant(error, 2))
        for role, placed in points.items()
        for (value, error), row in placed
    ]
    table = Table(("model", "", "value", "standard error"), rows)
    return Figure(title, draw(title, [panel], legend_of(series)), table, note)


def task_section(sources: Sources) -> Section:
    """Return the accuracies of tasks, and the other metrics that are no perplexity of a text and no timing."""
    found: dict[tuple[str, str, Any], dict[str, Measured]] = {}
    for role, item, metric in task_metrics(sources):
        if metric["name"] != TOKEN_PPL and item["task"] != "efficiency":
            key = (item["task"], metric["name"], item["num_items"])
            found.setdefault(key, {})[role] = (metric["value"], metric.get("stderr"))
    parts: list[Any] = []
    if found:
        roles = [role for role in ROLES if any(role in values for values in found.values())]
        rows = [
            (f"{task} {name}", f"{items:,}", *_task_cells(name, values, roles))
            for (task, name, items), values in found.items()
        ]
        heads = [head for role in roles for head in ([role, "points"] if role != DENSE and DENSE in roles else [role])]
        parts.append(Table(("task", "items", *heads), rows))
        accuracies = {key: values for key, values in found.items() if key[1] in ACCURACIES}
        if accuracies:
            names = [f"{task} {name}" for task, name, _ in accuracies]
            points = points_of(roles, accuracies.values())
            note = "Bars are one standard error; differences within them may be chance."
            parts.append(_dots("Accuracy by task", "accuracy (higher is better)", names, points, note=note))
    failed = [item for item in (sources.evaluation or Record()).get("results", ()) if item["status"] == FAILED]
    parts += [Text(f"Failed: {item['task']} ({sources.role_of(item)}): {item['reason']}") for item in failed]
    if not parts:
        raise LeftOut("no task was measured; hgsp evaluate --tasks adds them")
    return Section("Tasks", parts)


def _task_cells(name: str, values: Mapping[str, Measured], roles: Sequence[str]) -> list[str]:
    """Return the value of every model, and the difference from the dense one in percentage points."""
    cells = []
    for role in roles:
        found = values.get(role)
        cells.append("" if found is None else accuracy(*found) if name in ACCURACIES else _with_error(*found))
        if role != DENSE and DENSE in roles:
            comparable = found is not None and DENSE in values and name in ACCURACIES
            cells.append(signed(100 * (found[0] - values[DENSE][0])) if found and comparable else "")
    return cells


def _with_error(value: float, stderr: float | None) -> str:
    return significant(value) if stderr is None else f"{significant(value)} ± {significant(stderr, 2)}"


def speed_section(sources: Sources) -> Section:
    """Return predicted and measured speed-ups, latencies and peak memory."""
    parts: list[Any] = []
    factors: list[tuple[str, float]] = []
    if speed := (sources.pruning or Record()).get("speed"):
        for name in ("predicted", "measured"):
            if (factor := speed[f"{name}_speedup"]) is not None:
                factors.append((f"{name}, {speed['workload']}", factor))
    metrics: dict[str, dict[str, Mapping[str, Any]]] = {}
    for role, item, metric in task_metrics(sources):
        if item["task"] == "efficiency":
            metrics.setdefault(metric["name"], {})[role] = metric
    last = RECOVERED if any(RECOVERED in values for values in metrics.values()) else PRUNED
    for name, values in metrics.items():
        start, _, batch = name.partition("_batch")
        if start in EFFICIENCY and {DENSE, last} <= set(values):
            factors.append((f"{EFFICIENCY[start]}, batch {batch}", values[DENSE]["value"] / values[last]["value"]))
    if factors:
        rows = [(name, f"×{factor:.2f}") for name, factor in factors]
        points = [(factor, float(-place)) for place, (_, factor) in enumerate(factors)]
        axis = linear_axis("speed relative to the dense model (higher is better)", [1.0, *(f for _, f in factors)])
        names = names_axis([name for name, _ in factors])
        panel = Panel(axis, names, [Series("", "s1", points, is_line=False)], rule=1.0, height=ROW_HEIGHT * len(rows))
        title = "Speed relative to the dense model"
        parts.append(Figure(title, draw(title, [panel]), Table(("workload", "times as fast"), rows)))
    if metrics:
        roles = [role for role in ROLES if any(role in values for values in metrics.values())]
        latencies = [
            (name.replace("_batch", ", batch ").replace("_", " "), *(_with_unit(values.get(role)) for role in roles))
            for name, values in metrics.items()
        ]
        parts.append(Table(("", *roles), latencies))
    if not parts:
        raise LeftOut("speed was not measured; hgsp evaluate --tasks efficiency does, and --profile predicts it")
    return Section("Speed and memory", parts)


def _with_unit(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    if metric["unit"] in ("B", "count"):
        return with_prefix(metric["value"], "B" if metric["unit"] == "B" else "")
    return f"{significant(metric['value'])} {metric['unit']}"


def sample_section(sources: Sources) -> Section:
    """Return the greedy continuations of every prompt by each model."""
    found: dict[tuple[str, bool], dict[str, str]] = {}
    for report, roles in ((sources.pruning, (DENSE, PRUNED)), (sources.recovery, (PRUNED, RECOVERED))):
        samples = (report or Record()).get("samples") or {}
        for stage, role in zip((BEFORE, AFTER), roles, strict=True):
            if samples.get(stage):
                found.setdefault(("", False), {}).setdefault(role, samples[stage])
            for prompt in samples.get("prompts", ()):
                if prompt.get(stage) is not None:
                    found.setdefault((prompt["prompt"], prompt["chat"]), {}).setdefault(role, prompt[stage])
    if not found:
        raise LeftOut("no text was sampled (--skip_evaluation, --offload, or no pruning here)")
    parts = [
        Sample(f"{prompt}{' (as a chat)' * chat}", [(role, texts[role]) for role in ROLES if role in texts])
        for (prompt, chat), texts in found.items()
    ]
    return Section("Samples", (Text("Greedy continuations, the same number of tokens for every model."), *parts))
