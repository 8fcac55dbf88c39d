"""The table of results: every number as CSV, and a short version for Markdown, LaTeX and the terminal."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence

from rich.table import Table

from hgsp.console.report_schema import ROLES, TOKEN_PPL
from hgsp.study.collect import Quantity, Result, Skipped

Cell = str | int | float | None

#: Columns of the CSV file before the measured quantities.
FACTS: dict[str, Callable[[Result], Cell]] = {
    "folder": lambda result: str(result.folder),
    "model": lambda result: result.model,
    "gqa_ratio": lambda result: result.gqa_ratio,
    "importance_method": lambda result: result.method,
    "temperature": lambda result: result.temperature,
    "calibration": lambda result: result.calibration,
    "seed": lambda result: result.seed,
    "asked_ratio": lambda result: result.asked_ratio,
    "ratio_of": lambda result: result.ratio_of,
    "reached_ratio": lambda result: result.reached_ratio,
    "reached_ratio_decoder": lambda result: result.reached_ratio_decoder,
    "params_before": lambda result: result.params_before,
    "params_after": lambda result: result.params,
    "weight_bytes": lambda result: result.weight_bytes,
    "kv_bytes_per_token": lambda result: result.kv_bytes_per_token,
    "seconds": lambda result: result.seconds,
    "recovery": lambda result: result.recovery,
    "recovery_seconds": lambda result: result.recovery_seconds,
}
#: Columns of the short table before and after the measured quantities.
SHORT: dict[str, Callable[[Result], str]] = {
    "model": lambda result: result.model,
    "GQA": lambda result: f"{result.gqa_ratio:g}:1",
    "method": lambda result: result.setting,
    "asked": lambda result: f"{result.asked_ratio:.2f} of {result.ratio_of}",
    "of all": lambda result: f"{result.reached_ratio:.4f}",
    "of decoder": lambda result: "-" if result.reached_ratio_decoder is None else f"{result.reached_ratio_decoder:.4f}",
    "parameters": lambda result: with_unit(result.params),
    "bytes": lambda result: f"{with_unit(result.weight_bytes)}B",
    "KV B/token": lambda result: f"{result.kv_bytes_per_token:,}",
}
SHORT_END: dict[str, Callable[[Result], str]] = {
    "seconds": lambda result: f"{result.seconds:,.0f}",
    "recovery": lambda result: (
        "" if result.recovery is None else f"{result.recovery}, {result.recovery_seconds:,.0f} s"
    ),
    "folder": lambda result: "/".join(result.folder.absolute().parts[-2:]),
}
ARROW = " → "
LATEX_ESCAPES = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\to$",
}
NOTE = (
    f"Measurements are dense{ARROW}pruned{ARROW}recovered, - if missing. PPL is per token, over windows x tokens per "
    "window (all: to the end of the text; BOS: every window begins with BOS; cut: the short last window is dropped). "
    "Every protocol has its own column. Seconds cover the whole pruning run."
)


def with_unit(count: float) -> str:
    """Format a count with up to four digits and a unit: 6.42 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:g} "


def quantities(results: Sequence[Result]) -> list[Quantity]:
    """Return all measured quantities, perplexities first."""
    found = {quantity for result in results for quantity in result.values}
    return sorted(found, key=lambda quantity: (quantity.metric != TOKEN_PPL, quantity.task, quantity))


def headings(measured: Sequence[Quantity]) -> dict[Quantity, str]:
    """Return a heading for each quantity, with ``detail`` where headings would otherwise coincide."""
    plain = {item: f"{_name(item)} ({item.protocol})" for item in measured}
    times = Counter(plain.values())
    return {item: f"{text} [{item.detail}]" if times[text] > 1 else text for item, text in plain.items()}


def _name(quantity: Quantity) -> str:
    return f"PPL {quantity.task}" if quantity.metric == TOKEN_PPL else f"{quantity.task} {quantity.metric}"


def to_csv(results: Sequence[Result]) -> str:
    """Return all numbers exactly as stored; missing ones are empty."""
    measured = headings(quantities(results))
    roles = {
        (item, role): f"{text} {role}"
        for item, text in measured.items()
        for role in ROLES
        if any(role in result.values.get(item, {}) for result in results)
    }
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow([*FACTS, *roles.values()])
    for result in results:
        numbers = [result.values.get(item, {}).get(role) for item, role in roles]
        writer.writerow([fact(result) for fact in FACTS.values()] + numbers)
    return sink.getvalue()


def short_rows(results: Sequence[Result], measured: Sequence[Quantity]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows for display, without empty columns."""
    ends = {name: text for name, text in SHORT_END.items() if any(map(text, results))}
    rows = [
        [text(result) for text in SHORT.values()]
        + [_numbers(result, item) for item in measured]
        + [text(result) for text in ends.values()]
        for result in results
    ]
    names = headings(measured)
    return [*SHORT, *(names[item] for item in measured), *ends], rows


def _numbers(result: Result, quantity: Quantity) -> str:
    values = result.values.get(quantity, {})
    last = max((number for number, role in enumerate(ROLES) if role in values), default=-1)
    digits = 3 if quantity.metric.startswith("acc") else 2
    return ARROW.join(f"{values[role]:,.{digits}f}" if role in values else "-" for role in ROLES[: last + 1])


def to_markdown(results: Sequence[Result], skipped: Sequence[Skipped]) -> str:
    """Return the short table, the note on it, and the skipped folders."""
    names, rows = short_rows(results, quantities(results))
    lines = ["# Summary", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines += ["", NOTE]
    if skipped:
        lines += ["", "Skipped:", ""] + [f"- `{item.folder}`: {item.reason}" for item in skipped]
    return "\n".join(lines) + "\n"


def to_latex(results: Sequence[Result]) -> str:
    """Return the short table as a ``tabular`` that needs no package."""
    names, rows = short_rows(results, quantities(results))
    lines = [f"% {NOTE.replace(ARROW, ' to ')}", rf"\begin{{tabular}}{{{_alignment(names)}}}", r"\hline"]
    lines += [" & ".join(map(escape_latex, names)) + r" \\", r"\hline"]
    lines += [" & ".join(map(escape_latex, row)) + r" \\" for row in rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"


def _alignment(names: Sequence[str]) -> str:
    return "".join("l" if name in ("model", "method", "recovery", "folder") else "r" for name in names)


def escape_latex(text: str) -> str:
    """Escape the special characters of LaTeX."""
    return "".join(LATEX_ESCAPES.get(character, character) for character in text)


def terminal_tables(results: Sequence[Result]) -> list[Table]:
    """Return a table of sizes and perplexities, and a second one of tasks, if any, so that both fit a terminal."""
    measured = quantities(results)
    texts = [item for item in measured if item.metric == TOKEN_PPL]
    tables = [_terminal_table(*short_rows(results, texts))]
    tasks = [item for item in measured if item.metric != TOKEN_PPL]
    if tasks:
        names = headings(measured)
        rows = [
            [result.model, *(_numbers(result, item) for item in tasks), SHORT_END["folder"](result)]
            for result in results
        ]
        tables.append(_terminal_table(["model", *(names[item] for item in tasks), "folder"], rows))
    return tables


def _terminal_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table()
    for name, side in zip(names, _alignment(names), strict=True):
        table.add_column(name, justify="left" if side == "l" else "right")
    for row in rows:
        table.add_row(*row)
    return table
