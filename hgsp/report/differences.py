"""Differences of accuracies between results that answered the same items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from hgsp.console.paired_errors import mean_stderr
from hgsp.console.report_schema import DENSE, LAMBADA, ROLES
from hgsp.report.content import Table
from hgsp.report.measured import task_metrics
from hgsp.report.sources import Sources

#: Task -> request of a measurement, accuracy, which items were answered correctly.
Answers = dict[str, tuple[str, float, str]]


def differences_table(runs: Mapping[str, Sources]) -> Table | None:
    """Return the differences of accuracies to the first run, None if no other run has answered the same items.

    Each run counts with its recovered model if it has one, a task with acc_norm if it has that.
    """
    answers = {name: found for name, sources in runs.items() if (found := _answers_of(sources))}
    if not answers:
        return None
    first, *others = answers
    rows = [
        (task, name, difference) for name in others for task, difference in _differences(answers[first], answers[name])
    ]
    return Table(("task", "run", f"minus {first}, points"), rows) if rows else None


def _answers_of(sources: Sources) -> Answers:
    """Return the answers of the last model of a result, in the order of roles, that was measured."""
    by_role: dict[str, Answers] = {}
    for role, item, metric in task_metrics(sources):
        if metric["name"] in ("acc", "acc_norm") and metric.get("correct"):
            task, known = item["task"], by_role.setdefault(role, {})
            request = json.dumps([item.get("request"), metric["name"]], sort_keys=True)
            if task not in known or metric["name"] == "acc_norm":
                known[task] = request, metric["value"], metric["correct"]
    measured = [role for role in ROLES if role in by_role and role != DENSE]
    return by_role[measured[-1]] if measured else {}


def _differences(first: Answers, other: Answers) -> Iterator[tuple[str, str]]:
    """Yield task and difference, of every task that both have by the same request, and of the mean without LAMBADA."""
    common = [task for task in first if task in other and first[task][0] == other[task][0]]
    groups, averaged = {task: [task] for task in common}, [task for task in common if task != LAMBADA]
    if len(averaged) > 1:
        groups[f"mean of {len(averaged)}"] = averaged
    for label, tasks in groups.items():
        error = mean_stderr((first[task][2], other[task][2]) for task in tasks)
        if error is not None:
            yield label, f"{100 * _mean_difference(first, other, tasks):+.1f} ± {100 * error:.1f}"


def _mean_difference(first: Answers, other: Answers, tasks: Sequence[str]) -> float:
    return sum(other[task][1] - first[task][1] for task in tasks) / len(tasks)
