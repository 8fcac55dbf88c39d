"""Tables of docs/RELIABILITY.md: experiments and executions, and those in which anything was wrong."""

from __future__ import annotations

from collections.abc import Iterable

from docs_results import Result, Row, Table

#: Suites of ``benchmarks/reliability.py`` in the order of the columns.
SUITES = ("kills at writes", "kills at moments", "signals", "faults", "two at once", "same bytes", "hostile files")


def counts(found: Result) -> Iterable[Row]:
    """Yield one row per stage, and one of all."""
    cells = {(row["suite"], row["stage"]): (row["experiments"], row["problems"]) for row in found["rows"]}
    for stage in dict.fromkeys(row["stage"] for row in found["rows"]):
        yield stage, *(_cell(cells.get((suite, stage))) for suite in SUITES)
    sums = [[value for (suite, _), value in cells.items() if suite == name] for name in SUITES]
    yield "sum", *(_cell((sum(pair[0] for pair in each), sum(pair[1] for pair in each))) for each in sums)


def _cell(counted: tuple[int, int] | None) -> str:
    if counted is None:
        return ""
    experiments, problems = counted
    return f"{experiments:,}, {problems:,} wrong" if problems else f"{experiments:,}"


def fuzzed(found: Result) -> Iterable[Row]:
    """Yield one row per parser that was fuzzed."""
    for row in found["rows"]:
        yield row["parser"], f"{row['executions']:,}", f"{row['refused']:,}", f"{len(row['failures']):,}"


RELIABILITY_TABLES = {
    "reliability": Table(("reliability",), ("stage", *SUITES), counts),
    "fuzzing": Table(("fuzzing",), ("parser", "executions", "refused", "wrong"), fuzzed),
}
