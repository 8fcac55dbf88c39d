"""Machinery of the generated tables: results files in, Markdown with its provenance out."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quality_report
from docs_chinese import is_chinese, said
from docs_source import REPOSITORY, RESULTS, table

Result = Mapping[str, Any]
Row = Sequence[str]
Rows = Callable[..., Iterable[Row]]

GIB = 1 << 30
RATIOS = (0.2, 0.3, 0.5)
WIKITEXT, C4 = "wiki.test.raw", "c4_sample_1000.jsonl"
#: Names of evaluation files in results, as documents call them.
TEXTS = {WIKITEXT: "WikiText-2", C4: "C4"}
#: The same of texts that no method calibrates on.
UNSEEN_TEXTS = {"lambada_test.jsonl": "LAMBADA", "builtin": "Python's help"}
#: Names of the texts of ``Comparison``.
NAMES = {**TEXTS, "wikitext2": "WikiText-2"}

OF_DECODER = "Columns are the fraction of the decoder layers' parameters removed."
OF_ALL = "Fractions are of all parameters, embeddings included."


@dataclass(frozen=True)
class Table:
    """One table of a document; ``rows`` is called with the contents of the files named in ``results``.

    ``counts`` is a sentence that says of what the fractions are.
    """

    results: tuple[str, ...]
    head: Row
    rows: Rows
    counts: str = ""

    def text(self, page: Path) -> str:
        """Return the table and its provenance as Markdown, in the language of the page."""
        head, *rows = translated([self.head, *self.rows(*map(load, self.results))], page)
        return f"{table(head, rows)}\n\n{caption(self.counts, self.results, page)}".rstrip()


@dataclass(frozen=True)
class Comparison:
    """All tables that ``benchmarks/quality.py`` makes of one file, without those of texts that no method sees."""

    result: str

    def text(self, page: Path) -> str:
        """Return the tables and their provenance as Markdown, with readable names of the evaluation texts."""
        found = load(self.result)
        rows = [{**row, "ppl": _named(row["ppl"]), "kl": _named(row["kl"])} for row in found["rows"]]
        lines = "\n".join(quality_report.tables({**found, "dense": _named(found["dense"]), "rows": rows})).rstrip()
        for name in TEXTS.values():
            lines = lines.replace(f"| {name} |", f"| {name}, perplexity |")
        return f"{lines}\n\n{caption(OF_DECODER, [self.result], page)}"


def _named(by_text: Result) -> dict[str, Any]:
    return {NAMES[text]: value for text, value in by_text.items() if text in NAMES}


@functools.cache
def load(name: str) -> Any:
    """Return the contents of ``benchmarks/results/{name}.json``."""
    return json.loads((REPOSITORY / RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def translated(rows: Iterable[Row], page: Path) -> list[list[str]]:
    """Return the rows in the language of the page."""
    return [[said(cell, page) for cell in row] for row in rows]


def caption(counts: str, results: Sequence[str], page: Path) -> str:
    """Return what the fractions of a table count and where its numbers are from, in the language of the page."""
    told = said(counts, page)
    if not results:
        return told
    if is_chinese(page):
        return f"{told}数据来源：{sources(results, page)}。"
    return f"{told} Source: {sources(results, page)}.".lstrip()


def sources(results: Sequence[str], page: Path) -> str:
    """Return script, hardware, file and commit of results; the files have the whole commands."""
    folder = "../" * (len(page.relative_to(REPOSITORY).parts) - 1) + RESULTS
    comma, colon, semicolon = ("，", "：", "；") if is_chinese(page) else (", ", ": ", "; ")
    groups = []
    for made_by, names in itertools.groupby(results, made_by_of):
        files = [
            f"[{name}.json]({folder}/{name}.json){comma}{said('commit', page)} {load(name)['commit']}" for name in names
        ]
        groups.append(comma.join(said(part, page) for part in made_by) + colon + semicolon.join(files))
    return semicolon.join(groups)


def made_by_of(name: str) -> tuple[str, ...]:
    """Return script, processor and number of threads of a result."""
    found = load(name)
    script = next(word for word in found["command"].split() if word.endswith((".py", ".sh")))
    parts = [f"`{script}`", *([found["processor"]] if "processor" in found else [])]
    if count := found.get("threads", found.get("cores")):
        unit = "thread" if "threads" in found else "core"
        parts.append(f"{count} {unit}{'s' * (count > 1)}")
    return tuple(parts)


def number(value: float | None) -> str:
    """Return a perplexity with one decimal, from 1000 on with none."""
    return "" if value is None else f"{value:,.{0 if value >= 1000 else 1}f}"


def percent(ratio: float) -> str:
    return f"{100 * ratio:g}%"


def by_ratio(
    labels: Mapping[str, str],
    value: Callable[[Result], float] = lambda row: row["ppl"][WIKITEXT],
    *,
    key: str = "way",
    ratios: Sequence[float] = RATIOS,
    dense: Callable[[Result], float] = lambda result: result["dense"][WIKITEXT],
    where: Callable[[Result], bool] = lambda row: True,
) -> Callable[[Result], Iterable[Row]]:
    """Return a maker of rows in the order of the labels: one column for the dense model, one for each ratio."""

    def rows(result: Result) -> Iterable[Row]:
        cells = {(row[key], row["ratio"]): number(value(row)) for row in result["rows"] if where(row)}
        for name, label in labels.items():
            yield label, number(dense(result)), *(cells.get((name, ratio), "") for ratio in ratios)

    return rows


def methods(labels: Mapping[str, str], ratios: Sequence[float]) -> Callable[[Result], Iterable[Row]]:
    """Return a maker of rows for importance methods at their defaults, without the H-GSP prior."""
    return by_ratio(
        labels,
        lambda row: row["ppl"],
        key="method",
        ratios=ratios,
        dense=lambda result: result["dense"]["ppl"],
        where=lambda row: row["normalization"] == "auto" and row["temperature"] == 0,
    )


def records(*columns: Callable[[Result], str], key: str | None = "rows") -> Rows:
    """Return a maker of one row for each record of every file; without a key, each file is one record."""

    def rows(*results: Result) -> Iterable[Row]:
        for result in results:
            for record in [result] if key is None else result[key]:
                yield [column(record) for column in columns]

    return rows
