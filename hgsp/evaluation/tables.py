"""Tables of dense | pruned | recovered with differences, for the terminal and as Markdown.

A row compares results of identical requests only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from hgsp.console.paired_errors import mean_stderr
from hgsp.console.report_schema import DENSE, DONE, FAILED, ROLES
from hgsp.console.tables import format_number, new_table
from hgsp.evaluation.metrics.zeroshot import ZERO_SHOT, averages
from hgsp.evaluation.results import Metric, Results, TaskResult
from hgsp.evaluation.tasks import EFFICIENCY

ACCURACIES = ("acc", "acc_norm")


@dataclass(frozen=True)
class Row:
    """One metric of one request for all models. ``failed``: roles in which the task failed.

    ``difference_stderr``: role -> standard error of its difference to the dense model, where both saw the same items.
    """

    task: str
    metric: str
    summary: str
    values: Mapping[str, Metric]
    failed: frozenset[str]
    difference_stderr: Mapping[str, float] = field(default_factory=dict)

    def ratio(self, role: str) -> float | None:
        """Return the value divided by the dense model's; None if one is missing or the dense value is 0."""
        if role not in self.values or DENSE not in self.values or self.values[DENSE].value == 0:
            return None
        return self.values[role].value / self.values[DENSE].value

    def difference(self, role: str) -> float | None:
        """Return the value minus the dense model's; None if one is missing."""
        if role not in self.values or DENSE not in self.values:
            return None
        return self.values[role].value - self.values[DENSE].value


def comparison(results: Results) -> list[Row]:
    """Return all rows in the order in which their tasks were first measured; a failed task is one row."""
    groups: dict[str, list[TaskResult]] = {}
    for item in results.results:
        groups.setdefault(item.key, []).append(item)
    rows = []
    for items in groups.values():
        done = [item for item in items if item.status == DONE]
        failed = frozenset(item.role for item in items if item.status == FAILED)
        names = dict.fromkeys(metric.name for item in done for metric in item.metrics) or {"": None}
        summary = done[0].summary if done else ""
        for name in names:
            values = {item.role: item.by_name[name] for item in done if name in item.by_name}
            rows.append(Row(items[0].task, name, summary, values, failed, _difference_stderrs([values])))
    return rows + _average_rows(results)


def _average_rows(results: Results) -> list[Row]:
    means, latest = zero_shot_averages(results), _latest_zero_shot(results)
    rows = []
    for name in ACCURACIES if means else ():
        some = next(iter(means.values()))
        note = f"mean over {', '.join(some['tasks'])}"
        if name == "acc_norm" and some["acc_norm_is_acc_for"]:
            note += f"; acc for {', '.join(some['acc_norm_is_acc_for'])}"
        values = {role: Metric(name, mean[name], higher_is_better=True) for role, mean in means.items()}
        metrics = [{role: _averaged(found[task], name) for role, found in latest.items()} for task in some["tasks"]]
        rows.append(Row("zero-shot average", name, note, values, frozenset(), _difference_stderrs(metrics)))
    return rows


def _averaged(result: TaskResult, name: str) -> Metric:
    """Return the metric of a task that counts in an average: acc for tasks without acc_norm."""
    return result.by_name.get(name, result.by_name["acc"])


def _difference_stderrs(tasks: Sequence[Mapping[str, Metric]]) -> dict[str, float]:
    """Return role -> standard error of the difference to the dense model in the mean over tasks, taken as independent.

    Args:
        tasks: role -> accuracy, for each task; a role without the items of every task is left out.
    """
    found = {}
    for role in tasks[0]:
        error = None
        if role != DENSE and all(DENSE in metrics for metrics in tasks):
            error = mean_stderr((metrics[DENSE].correct, metrics[role].correct) for metrics in tasks)
        if error is not None:
            found[role] = error
    return found


def _latest_zero_shot(results: Results) -> dict[str, dict[str, TaskResult]]:
    """Return role -> task -> the latest result."""
    by_role: dict[str, dict[str, TaskResult]] = {}
    for item in results.results:
        if item.status == DONE and item.task in ZERO_SHOT:
            by_role.setdefault(item.role, {})[item.task] = item
    return by_role


def zero_shot_averages(results: Results) -> dict[str, dict[str, Any]]:
    """Return role -> averages over the zero-shot tasks that every role has by identical (the latest) requests."""
    by_role = _latest_zero_shot(results)
    common = [
        task
        for task in ZERO_SHOT
        if by_role
        and all(task in found for found in by_role.values())
        and len({found[task].key for found in by_role.values()}) == 1
    ]
    means = {}
    for role in (role for role in ROLES if role in by_role):
        scores = {task: {m.name: m.value for m in by_role[role][task].metrics} for task in common}
        mean = averages(scores)
        if mean is not None:
            means[role] = mean
    return means


def terminal_table(results: Results, title: str) -> Table:
    """Return the table of all results: one section per measurement, protocols numbered below."""
    roles = _roles(results)
    headings = [[role, "vs dense"] if role != DENSE and DENSE in roles else [role] for role in roles]
    table = new_table(title, "", *(heading for pair in headings for heading in pair))
    protocols: list[str] = []
    previous = ("", "")
    for row in comparison(results):
        task, metric, *cells, summary = _cells(row, roles, compact=True)
        if (task, summary) != previous:
            table.add_section()
            reference = ""
            if summary:
                protocols.append(f"({len(protocols) + 1}) {task}: {summary}")
                reference = f" ({len(protocols)})"
            table.add_row(Text.assemble((task, "bold"), reference), *([""] * len(cells) if metric else cells))
        if metric:
            table.add_row(f" {short_name(metric)}", *cells)
        previous = (task, summary)
    timed = any(item.task == EFFICIENCY and item.status == DONE for item in results.results)
    legend = ["b1, b16: batch sizes"] if timed else []
    table.caption = "\n".join([*protocols, *legend, *_footnotes(results)])
    return table


def markdown(results: Results, title: str, notes: Sequence[str] = ()) -> str:
    """Return the same as a Markdown page, with the full protocols at the end."""
    roles = _roles(results)
    headings = ["task", "metric"]
    for role in roles:
        headings += [role, "vs dense"] if role != DENSE and DENSE in roles else [role]
    lines = [f"# {title}", "", *_markdown_row([*headings, "protocol"]), "|" + "---|" * (len(headings) + 1)]
    for row in comparison(results):
        lines += _markdown_row(_cells(row, roles))
    lines += ["", *(f"* {note}" for note in [*notes, *_footnotes(results)])]
    lines += ["", "## Protocols", ""]
    described = {item.key: item for item in results.results if item.status == DONE}
    lines += [f"* **{item.task}**: {item.protocol.get('description', '')}" for item in described.values()]
    return "\n".join(lines) + "\n"


def _roles(results: Results) -> list[str]:
    present = {item.role for item in results.results}
    return [role for role in ROLES if role in present]


def _cells(row: Row, roles: Iterable[str], *, compact: bool = False) -> list[str]:
    """Return task, metric, values with their changes, and summary; ``compact`` cells have at most 12 characters."""
    roles = list(roles)
    cells = [row.task, row.metric]
    for role in roles:
        missing = "failed" if role in row.failed else "-"
        text = _short_metric if compact else format_metric
        cells.append(text(row.values[role]) if role in row.values else missing)
        if role != DENSE and DENSE in roles:
            cells.append(_short_change(row, role) if compact else _change(row, role))
    return [*cells, row.summary]


def short_name(metric: str) -> str:
    """Return a metric's name in at most 20 characters: of batch size 16, ``prefill_ms_batch16`` is "prefill ms b16"."""
    if "_batch" in metric:
        return metric.replace("_rate_", "_tok/s_").replace("_batch", "_b").replace("_", " ")
    return metric.replace("_per_", "/").replace("attention_", "attn_")


def _short_metric(metric: Metric) -> str:
    """Format a value in at most 12 characters; milliseconds and tokens per second are in the metric's name."""
    if metric.unit in ("B", "count"):
        return format_metric(metric)
    if metric.unit:
        return f"{metric.value:.4g}"
    decimals = 3 if metric.name in ACCURACIES else 2 if metric.value < 100 else 1 if metric.value < 1e4 else 0
    value = format_number(metric.value, decimals)
    with_stderr = value if metric.stderr is None else f"{value} ±{metric.stderr:.{decimals}f}"
    return with_stderr if len(with_stderr) <= 12 else value


def _short_change(row: Row, role: str) -> str:
    """Format the ratio to dense, for accuracies the difference in points, in at most 9 characters."""
    ratio, difference = row.ratio(role), row.difference(role)
    if row.metric in ACCURACIES and difference is not None:
        plain, error = f"{100 * difference:+.1f}", row.difference_stderr.get(role)
        if error is None:
            return f"({plain})"
        return f"{plain} ±{100 * error:.{1 if len(plain) < 5 and error < 0.0995 else 0}f}"
    return "" if ratio is None else f"x{ratio:.2f}" if ratio < 1e4 else f"x{ratio:.1e}"


def format_metric(metric: Metric) -> str:
    """Format a value with its unit or standard error."""
    if metric.unit in ("B", "count"):
        return (_with_prefix(metric.value) + ("B" if metric.unit == "B" else "")).rstrip()
    if metric.unit:
        return f"{metric.value:.4g} {metric.unit}"
    decimals = 4 if metric.name in ACCURACIES else 3
    stderr = "" if metric.stderr is None else f" ±{format_number(metric.stderr, decimals)}"
    return f"{format_number(metric.value, decimals)}{stderr}"


def _with_prefix(value: float) -> str:
    """Format four digits with a decimal prefix: 134.5 M."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {prefix}"
    return f"{value:.4g} "


def _change(row: Row, role: str) -> str:
    """Format the ratio to dense as ``x0.94``, of times as speed, and for accuracies the difference in points too."""
    ratio, difference = row.ratio(role), row.difference(role)
    if difference is None:
        return ""
    if ratio and row.values[role].unit == "ms":
        return f"{1 / ratio:.2f}x as fast"
    times = "" if ratio is None else f"x{ratio:.2f}"
    if row.metric not in ACCURACIES:
        return times
    error = row.difference_stderr.get(role)
    points = f"{100 * difference:+.1f}" + ("" if error is None else f" ±{100 * error:.1f}")
    return f"{times} ({points})".lstrip()


def _footnotes(results: Results) -> list[str]:
    notes = [
        f"{role}: {Path(model['path']).name} ({results.portable_models()[role]['path']})"
        for role, model in results.models.items()
    ]
    failed: dict[tuple[str, str | None], list[str]] = {}
    for item in results.results:
        if item.status == FAILED:
            failed.setdefault((item.task, item.reason), []).append(item.role)
    notes += [f"FAILED {task} ({', '.join(roles)}): {reason}" for (task, reason), roles in failed.items()]
    if any(item.task in ZERO_SHOT and item.status == DONE for item in results.results):
        notes.append(
            "± is one standard error, of differences over the same items; differences are percentage points; acc_norm "
            "divides each choice's log-likelihood by its length in characters"
        )
    return notes


def _markdown_row(cells: Iterable[str]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"]


def comparisons_as_dicts(results: Results) -> list[dict[str, Any]]:
    """Return differences and ratios for ``results.json``, for rows with a dense value."""
    return [
        {
            "task": row.task,
            "metric": row.metric,
            "role": role,
            "difference": row.difference(role),
            "difference_stderr": row.difference_stderr.get(role),
            "ratio": row.ratio(role),
        }
        for row in comparison(results)
        for role in ROLES
        if role != DENSE and row.difference(role) is not None
    ]
