"""Results side by side: dense | pruned | recovered with differences, for the terminal and as Markdown.

Only results of identical requests stand in one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from evaluation.metrics.zeroshot import ZERO_SHOT, averages
from evaluation.results import DENSE, DONE, FAILED, ROLES, Metric, Results, TaskResult

ACCURACIES = ("acc", "acc_norm")


@dataclass(frozen=True)
class Row:
    """One metric of one request over the models. ``failed``: roles in which the task failed."""

    task: str
    metric: str
    summary: str
    values: Mapping[str, Metric]
    failed: frozenset[str]

    def ratio(self, role: str) -> float | None:
        """Value over the dense model's; None where one of them is missing or the dense value is 0."""
        if role not in self.values or DENSE not in self.values or self.values[DENSE].value == 0:
            return None
        return self.values[role].value / self.values[DENSE].value

    def difference(self, role: str) -> float | None:
        """Value minus the dense model's."""
        if role not in self.values or DENSE not in self.values:
            return None
        return self.values[role].value - self.values[DENSE].value


def comparison(results: Results) -> list[Row]:
    """All rows, in the order in which their tasks were first measured; a failed task is one row."""
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
            values = {item.role: item.by_name[name] for item in done}
            rows.append(Row(items[0].task, name, summary, values, failed))
    return rows + _average_rows(results)


def _average_rows(results: Results) -> list[Row]:
    means = zero_shot_averages(results)
    rows = []
    for name in ACCURACIES if means else ():
        some = next(iter(means.values()))
        note = f"mean over {', '.join(some['tasks'])}"
        if name == "acc_norm" and some["acc_norm_is_acc_for"]:
            note += f"; acc for {', '.join(some['acc_norm_is_acc_for'])}"
        values = {role: Metric(name, mean[name], higher_is_better=True) for role, mean in means.items()}
        rows.append(Row("zero-shot average", name, note, values, frozenset()))
    return rows


def zero_shot_averages(results: Results) -> dict[str, dict[str, Any]]:
    """Role -> averages over the zero-shot tasks that every role has, by identical requests; the last request counts."""
    by_role: dict[str, dict[str, TaskResult]] = {}
    for item in results.results:
        if item.status == DONE and item.task in ZERO_SHOT:
            by_role.setdefault(item.role, {})[item.task] = item
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
    """The table of the whole file."""
    rows = comparison(results)
    roles = _roles(results)
    table = Table(title=title, caption="\n".join(_footnotes(results)), caption_justify="left")
    for heading in ("task", "metric"):
        table.add_column(heading, no_wrap=heading == "metric")
    for role in roles:
        table.add_column(role, justify="right", no_wrap=True)
        if role != DENSE and DENSE in roles:
            table.add_column("vs dense", justify="right", no_wrap=True)
    table.add_column("protocol", overflow="fold")
    previous = ("", "")
    for row in rows:
        task, *cells, summary = _cells(row, roles)
        if (row.task, row.summary) == previous:
            table.add_row("", *cells, "")  # the same measurement: its protocol stands in the first row
        else:
            table.add_section()
            table.add_row(task, *cells, summary)
        previous = (row.task, row.summary)
    return table


def markdown(results: Results, title: str, notes: Sequence[str] = ()) -> str:
    """The same as a Markdown page, followed by the full protocol of every number."""
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


def _cells(row: Row, roles: Iterable[str]) -> list[str]:
    roles = list(roles)
    cells = [row.task, row.metric]
    for role in roles:
        cells.append(_value(row.values[role]) if role in row.values else ("failed" if role in row.failed else "-"))
        if role != DENSE and DENSE in roles:
            cells.append(_change(row, role))
    return [*cells, row.summary]


def _value(metric: Metric) -> str:
    if metric.unit in ("B", "count"):
        return _with_prefix(metric.value) + ("B" if metric.unit == "B" else "")
    number = f"{metric.value:.4g}"
    if metric.unit == "" and metric.higher_is_better is not None:
        number = f"{metric.value:.4f}" if metric.higher_is_better else f"{metric.value:.3f}"
    stderr = "" if metric.stderr is None else f" ±{metric.stderr:.2g}"
    return f"{number}{stderr} {metric.unit}".rstrip()


def _with_prefix(value: float) -> str:
    """Four digits and a decimal prefix: 134.5 M."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {prefix}"
    return f"{value:.4g} "


def _change(row: Row, role: str) -> str:
    """``x0.94``, and for accuracies the difference in points first."""
    ratio, difference = row.ratio(role), row.difference(role)
    if difference is None:
        return ""
    times = "" if ratio is None else f"x{ratio:.2f}"
    return f"{100 * difference:+.2f} pt {times}".rstrip() if row.metric in ACCURACIES else times


def _footnotes(results: Results) -> list[str]:
    notes = [f"{role}: {Path(model['path']).name} ({model['path']})" for role, model in results.models.items()]
    failed: dict[tuple[str, str | None], list[str]] = {}
    for item in results.results:
        if item.status == FAILED:
            failed.setdefault((item.task, item.reason), []).append(item.role)
    notes += [f"FAILED {task} ({', '.join(roles)}): {reason}" for (task, reason), roles in failed.items()]
    if any(item.task in ZERO_SHOT and item.status == DONE for item in results.results):
        notes.append(
            "± is one standard error; acc_norm divides each choice's log-likelihood by its length in characters"
        )
    return notes


def _markdown_row(cells: Iterable[str]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"]


def comparisons_as_dicts(results: Results) -> list[dict[str, Any]]:
    """Differences and ratios for ``results.json``, for rows that have a dense value."""
    return [
        {
            "task": row.task,
            "metric": row.metric,
            "role": role,
            "difference": row.difference(role),
            "ratio": row.ratio(role),
        }
        for row in comparison(results)
        for role in ROLES
        if role != DENSE and row.difference(role) is not None
    ]
