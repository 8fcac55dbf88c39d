#!/usr/bin/env python3
"""Kill, disturb and race every stage on a tiny model, and count what goes wrong: the numbers of docs/RELIABILITY.md.

Each experiment runs a command in a forked child, looks at the files that are there, and runs it again undisturbed: that
must give the files of a run that nothing happened to. Exit code 1 if anything was wrong anywhere.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from machine import provenance  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from hard import faults, hostile, kills, repeats, rivals  # noqa: E402
from hard.forked import import_everything  # noqa: E402
from hard.world import STAGES, Experiment, World, make_world  # noqa: E402

SUITES = {
    "kills at writes": "killed before a write",
    "kills at moments": "killed at a random moment",
    "signals": "SIGTERM, SIGINT or SIGHUP at a random moment",
    "faults": "full disks, limits, permissions, clocks",
    "two at once": "two commands on one result",
    "same bytes": "another order of hashes, locale, thread count and memory setting",
    "hostile files": "links, pipes, devices and names",
}
#: Every experiment with its suite and stage, for workers that are forked once it is complete.
TASKS: list[tuple[str, str, Experiment]] = []


def main() -> int:
    """Run the suites, print one table and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writes", type=int, default=100, help="most kills at writes per stage")
    parser.add_argument("--moments", type=int, default=50, help="kills at random moments per stage")
    parser.add_argument("--signals", type=int, default=12, help="signals at random moments per stage")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=SUITES)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no experiment later after the first")
    parser.add_argument("--output", type=Path, help="file for the counts, such as benchmarks/results/reliability.json")
    options = parser.parse_args()
    begun = time.monotonic()
    import_everything()
    root = Path(tempfile.mkdtemp(prefix="hgsp-hard-"))
    root.chmod(0o755)  # a plain user has to read the inputs
    try:
        world = make_world(root, options.stages)
        for suite in options.suites:
            TASKS.extend(tasks(world, suite, options))
        random.Random(0).shuffle(TASKS)  # so that a limit cuts all suites alike
        rows = counted(run_all(options.jobs, time.monotonic() + 60 * options.minutes))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    show(rows)
    if options.output is not None:
        found = {"rows": rows, "seconds": round(time.monotonic() - begun), **provenance()}
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any(row["problems"] for row in rows))


def tasks(world: World, suite: str, options: argparse.Namespace) -> Iterator[tuple[str, str, Experiment]]:
    """Yield the experiments of one suite."""
    if suite == "hostile files":
        yield from ((suite, "all", experiment) for experiment in hostile.experiments(world))
        return
    for name in options.stages:
        yield from ((suite, name, experiment) for experiment in experiments(world, suite, name, options))
    if suite == "two at once" and "evaluation" in options.stages:
        yield suite, "evaluation", ("two measurements, one file", lambda: rivals.measure_twice(world))


def experiments(world: World, suite: str, name: str, options: argparse.Namespace) -> Iterator[Experiment]:
    """Yield the experiments of a suite with one stage."""
    if suite == "kills at writes":
        yield from kills.at_writes(world, name, options.writes)
    elif suite == "kills at moments":
        yield from kills.at_moments(world, name, options.moments)
    elif suite == "signals":
        yield from faults.interrupts(world, name, options.signals)
        yield "stdout closed", lambda: faults.close_stdout(world, name)
    elif suite == "faults":
        for fault in faults.faults():
            yield fault.name, lambda fault=fault: faults.disturb(world, name, fault)
    elif suite == "same bytes":
        yield from repeats.repeats(world, name)
    else:
        yield "the same command twice", lambda: rivals.race(world, name)


def run_all(jobs: int, deadline: float) -> Iterator[tuple[str, str, str, list[str]]]:
    """Run the tasks that begin before the deadline; yields suite, stage, label and everything that was wrong."""
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for number, problems in pool.imap_unordered(partial(run_one, deadline), range(len(TASKS))):
            if problems is None:
                continue
            suite, name, (label, _) = TASKS[number]
            for problem in problems:
                print(f"{suite}, {name}, {label}: {problem}", flush=True)
            yield suite, name, label, problems


def run_one(deadline: float, number: int) -> tuple[int, list[str] | None]:
    """Run one task in a worker; None if it is too late to begin."""
    if time.monotonic() > deadline:
        return number, None
    try:
        return number, TASKS[number][2][1]()
    except (AssertionError, OSError, ValueError, KeyError, TypeError) as error:
        return number, [f"the experiment failed: {type(error).__name__}: {error}"]


def counted(results: Iterator[tuple[str, str, str, list[str]]]) -> list[dict[str, Any]]:
    """Return one row per suite and stage: experiments, and those with problems."""
    total: Counter[tuple[str, str]] = Counter()
    wrong: Counter[tuple[str, str]] = Counter()
    for suite, name, _, problems in results:
        total[suite, name] += 1
        wrong[suite, name] += bool(problems)
    keys = [(suite, name) for suite in SUITES for name in (*STAGES, "all") if (suite, name) in total]
    return [
        {"suite": suite, "stage": name, "experiments": total[suite, name], "problems": wrong[suite, name]}
        for suite, name in keys
    ]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the counts: stages down, suites across."""
    table = Table("stage", *SUITES, title="experiments (problems)")
    cells = {(row["suite"], row["stage"]): f"{row['experiments']} ({row['problems']})" for row in rows}
    for name in (*STAGES, "all"):
        if any((suite, name) in cells for suite in SUITES):
            table.add_row(name, *(cells.get((suite, name), "") for suite in SUITES))
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
