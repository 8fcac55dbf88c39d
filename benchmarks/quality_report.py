"""Means, tables and a plot of the measurements of ``quality.py``."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from hgsp.console.paired_errors import mean_stderr
from hgsp.environment import install_command
from hgsp.evaluation.metrics.harness import Score
from hgsp.evaluation.metrics.zeroshot import averages

T = TypeVar("T")

#: Nine markers with ten colours distinguish ninety settings.
MARKERS = "os^vD<>PX"

#: Setting with which others are compared item by item.
REFERENCE = "balanced"
#: Accuracy of guessing: one over the number of choices.
CHANCE = {
    "boolq": 1 / 2,
    "piqa": 1 / 2,
    "hellaswag": 1 / 4,
    "winogrande": 1 / 2,
    "arc_easy": 1 / 4,
    "arc_challenge": 1 / 4,
    "openbookqa": 1 / 4,
}


def mean_accuracy(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    """Return mean acc and acc_norm over tasks, with standard errors sqrt(sum of squares) / n, tasks independent.

    ``correct``: which items of each task count as right in the mean of acc_norm.
    """
    means = averages({task: {name: score.value for name, score in found.items()} for task, found in scores.items()})
    assert means is not None
    result: dict[str, Any] = {}
    for metric in ("acc", "acc_norm"):
        errors = [_score(found, metric).stderr or 0.0 for found in scores.values()]
        result[metric] = round(means[metric], 4)
        result[f"{metric}_stderr"] = round(math.hypot(*errors) / len(errors), 4)
    by_task = {task: {name: round(score.value, 4) for name, score in found.items()} for task, found in scores.items()}
    correct = {task: _score(found, "acc_norm").correct for task, found in scores.items()}
    return {**result, "by_task": by_task, "correct": correct}


def markdown(result: Mapping[str, Any]) -> str:
    """Return the provenance of the numbers, and their tables."""
    origin = f"{result['base_model']}, `{result['command']}`, commit {result['commit']}, {result['processor']}"
    return "\n".join([origin, "", *tables(result)])


def tables(result: Mapping[str, Any]) -> list[str]:
    """Return tables of settings by ratios, as lines: perplexity and KL to the dense model by text, and mean accuracy.

    If the dense model is no better than chance on some tasks, adds the mean without them: their accuracy only tells how
    often a model's favourite answer happens to be right, and a worse model can score higher.
    """
    lines: list[str] = []
    for text, dense in result["dense"].items():
        lines += _table(result, text, f"{dense:,.1f}", lambda row, text=text: _number(row["ppl"].get(text), ",.1f"))
        lines += _table(
            result,
            f"{text}, KL(dense, pruned), nats per token",
            "0",
            lambda row, text=text: _number(row.get("kl", {}).get(text), ".3f"),
        )
    dense = {"accuracy": result.get("dense_accuracy")}
    lines += _table(result, "mean accuracy, %", _accuracy(dense), _accuracy)
    reference = {row["ratio"]: row for row in result["rows"] if row["way"] == REFERENCE}
    title = f"mean accuracy minus that of `{REFERENCE}`, points, errors paired by item"
    lines += _table(result, title, "", lambda row: _accuracy_above(reference.get(row["ratio"], {}), row))
    if guessed := _guessed(dense["accuracy"]):
        without = functools.partial(_accuracy_without, guessed)
        lines += _table(result, f"mean accuracy without {', '.join(guessed)}, %", without(dense), without)
    return lines


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Plot perplexity on every text against the ratio, one line per setting; prints a hint without matplotlib."""
    if find_spec("matplotlib") is None:
        print(f"no plot: install matplotlib ({install_command('plots')})")
        return
    from matplotlib.figure import Figure

    texts = list(result["dense"])
    figure = Figure(figsize=(6.4 * len(texts), 4.8), layout="constrained")
    for axes, text in zip(figure.subplots(1, len(texts), squeeze=False)[0], texts, strict=True):
        for place, (setting, line) in enumerate(_lines(result, text).items()):
            axes.plot(*zip(*line, strict=True), label=setting, marker=MARKERS[place % len(MARKERS)])
        axes.axhline(result["dense"][text], color="grey", linestyle=":", label="dense")
        axes.set(xlabel="removed of the decoder layers' parameters", ylabel=f"perplexity, {text}", yscale="log")
        axes.set_title(result["base_model"])
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _lines(result: Mapping[str, Any], text: str) -> dict[str, list[tuple[float, float]]]:
    """Map each setting to its (reached ratio, perplexity) pairs, ascending."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(result["rows"], key=lambda row: row["ratio"]):
        if text in row["ppl"]:
            lines.setdefault(row["way"], []).append((row["reached_of_decoder"], row["ppl"][text]))
    return lines


def _table(result: Mapping[str, Any], title: str, dense: str, cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """Return the lines of one table of the settings that have a cell, or none if no setting has."""
    ratios = sorted({row["ratio"] for row in result["rows"]})
    cells = {(row["way"], row["ratio"]): cell(row) for row in result["rows"]}
    settings = dict.fromkeys(setting for (setting, _), value in cells.items() if value)
    if not settings:
        return []
    return [
        f"| {title} | dense | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " |",
        "|" + "---|" * (len(ratios) + 2),
        *(
            f"| `{setting}` | {dense} | " + " | ".join(cells.get((setting, ratio), "") for ratio in ratios) + " |"
            for setting in settings
        ),
        "",
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _accuracy(row: Mapping[str, Any]) -> str:
    """Format the mean that pruning papers report: acc_norm, or acc for tasks without it."""
    found = row.get("accuracy")
    return "" if found is None else f"{100 * found['acc_norm']:.1f} ± {100 * found['acc_norm_stderr']:.1f}"


def _accuracy_above(reference: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Format the difference to another setting of the same size that answered the same items."""
    own, other = row.get("accuracy"), reference.get("accuracy")
    if own is None or other is None or row["way"] == reference["way"]:
        return ""
    items, others = own.get("correct", {}), other.get("correct", {})
    if items.keys() != others.keys():
        return ""
    error = mean_stderr((others[task], correct) for task, correct in items.items())
    return "" if error is None else f"{100 * (own['acc_norm'] - other['acc_norm']):+.1f} ± {100 * error:.1f}"


def _guessed(accuracy: Mapping[str, Any] | None) -> list[str]:
    """Return the tasks on which a model is no better than chance; none if that is true of all."""
    by_task = {} if accuracy is None else accuracy["by_task"]
    guessed = [task for task, found in by_task.items() if _score(found, "acc_norm") <= CHANCE[task]]
    return guessed if len(guessed) < len(by_task) else []


def _accuracy_without(guessed: Sequence[str], row: Mapping[str, Any]) -> str:
    """Format the mean over the other tasks, with the binomial standard error if all tasks had ``limit`` items."""
    accuracy = row.get("accuracy")
    if accuracy is None:
        return ""
    values = [_score(found, "acc_norm") for task, found in accuracy["by_task"].items() if task not in guessed]
    mean = f"{100 * sum(values) / len(values):.1f}"
    if accuracy["limit"] is None:
        return mean
    error = math.sqrt(sum(value * (1 - value) for value in values) / (accuracy["limit"] - 1)) / len(values)
    return f"{mean} ± {100 * error:.1f}"


def _score(found: Mapping[str, T], metric: str) -> T:
    """Return a task's value of this metric, or of acc if it has none."""
    return found.get(metric, found["acc"])
