#!/usr/bin/env python3
"""Fuzz the parsers of everything that a user passes, and count: a table of docs/RELIABILITY.md.

Each parser runs in a process of its own. atheris guides the mutations by the coverage of hgsp where it is installed;
without it they are drawn from a seed alone. An input is fine if it is accepted, or refused with an InputError.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

#: Counts, logs and last inputs of every parser, and inputs that failed.
FOLDER = ROOT / "build" / "fuzzing"
#: Seconds that a process may need beyond its share: for its imports and its seeds.
STARTUP_S = 240


def main() -> int:
    """Run the parsers side by side, print and write their counts; exit code 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parsers", nargs="*", help="names of targets; all by default")
    parser.add_argument("--minutes", type=float, default=14, help="at most, for all parsers together")
    parser.add_argument("--executions", type=int, default=100_000, help="at most, of each parser")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file for the counts, such as benchmarks/results/fuzzing.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        fuzz(options.child, options)
        return 0
    from machine import provenance

    from hard.fuzzing.targets import BY_NAME

    names = sorted(options.parsers or BY_NAME, key=lambda name: -BY_NAME[name].executions)  # the slowest last
    FOLDER.mkdir(parents=True, exist_ok=True)
    shares = Shares(time.monotonic() + 60 * options.minutes, len(names), options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        counts = dict(zip(names, pool.map(lambda name: in_process(name, shares.next(), options), names), strict=True))
    for line in table_of(counts):
        print(line)
    if options.output is not None:
        rows = [{"parser": name, **counts[name]} for name in BY_NAME if name in counts]
        options.output.write_text(json.dumps({"rows": rows, **provenance()}, indent=2) + "\n", encoding="utf-8")
    return int(any(found["failures"] for found in counts.values()))


class Shares:
    """Equal shares of the time that is left, for parsers in their order: those that need less leave more to others."""

    def __init__(self, deadline: float, parsers: int, jobs: int) -> None:
        self._deadline, self._parsers, self._jobs = deadline, parsers, jobs
        self._lock = Lock()

    def next(self) -> float:
        """Return the seconds of the parser that begins now."""
        with self._lock:
            left = max(1.0, self._deadline - time.monotonic())
            share = left * self._jobs / max(self._parsers, self._jobs)
            self._parsers -= 1
        return share


def table_of(counts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table of counts, and the failures below it."""
    yield f"{'parser':16} {'executions':>10} {'accepted':>9} {'refused':>9} {'failures':>8}  guided"
    for name, found in counts.items():
        numbers = f"{found['executions']:10,} {found['accepted']:9,} {found['refused']:9,} {len(found['failures']):8}"
        yield f"{name:16} {numbers}  {found['guided']}"
    for name, found in counts.items():
        for failure in found["failures"]:
            yield f"{name}: {failure['count']} x {failure['error']}"


def in_process(name: str, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Fuzz one parser in a process; one that hangs outside Python, or dies, is a failure with its last input."""
    file = counts_of(name)
    file.unlink(missing_ok=True)
    flags = ["--child", name, "--seconds", str(seconds), "--executions", str(options.executions)]
    command = [sys.executable, __file__, *flags, "--seed", str(options.seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with file.with_suffix(".log").open("w") as log:
        try:
            code: int | None = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=ROOT, check=False,
                timeout=seconds + STARTUP_S,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = None
    counts: dict[str, Any] = (
        json.loads(file.read_text()) if file.exists() else dict.fromkeys(("accepted", "refused"), 0)
    )
    counts = {"executions": 0, "failures": [], "guided": False} | counts
    if code != 0:
        error = "hung outside Python" if code is None else f"the process ended with {code}"
        counts["failures"].append({"error": f"{error}, see {file.stem}.log", "count": 1, "input": f"{file.stem}.last"})
    return counts


def counts_of(name: str) -> Path:
    """Return the file with the counts of one parser."""
    return FOLDER / f"{name.replace(' ', '_')}.json"


def fuzz(name: str, options: argparse.Namespace) -> None:
    """Run one parser in this process until its executions or seconds are spent, and end the process."""
    with instrumented():
        from hard.fuzzing.executions import Executions
        from hard.fuzzing.targets import BY_NAME

    target = BY_NAME[name]
    scratch = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        seeds, run = target.prepare(Path(folder))
        executions = Executions(run, counts_of(name), options.executions, time.monotonic() + options.seconds)
        for seed in seeds:
            executions.one(seed)
        if importlib.util.find_spec("atheris"):
            executions.guided = True
            guided(target.mutate, seeds, executions, Path(folder), options.seed)
        random = Random(options.seed)
        corpus = list(seeds)
        while True:
            content = target.mutate(random, random.choice(corpus))
            executions.one(content)
            if len(corpus) < 200 and random.random() < 0.01:
                corpus.append(content)  # mutations of mutations


def instrumented() -> contextlib.AbstractContextManager[Any]:
    """Return a block whose imports of hgsp count their coverage, where atheris is installed."""
    if importlib.util.find_spec("atheris") is None:
        return contextlib.nullcontext()
    import atheris

    return atheris.instrument_imports(include=["hgsp"])


def guided(mutation: Any, seeds: Any, executions: Any, folder: Path, seed: int) -> None:
    """Let libFuzzer choose inputs by coverage and change them by our mutations; it never returns."""
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds):
        (corpus / str(number)).write_bytes(content)

    def custom(content: bytes, max_size: int, number: int) -> bytes:
        random = Random(number)
        try:
            return mutation(random, content)[:max_size]
        except Exception:  # noqa: BLE001 - a mutated archive may be one that nothing can open again
            return mutation(random, random.choice(seeds))[:max_size]

    longest = 2 * max(map(len, seeds)) + 512  # what is longer takes longer to read and finds no more
    flags = [
        f"-seed={seed + 1}",
        f"-max_len={longest}",
        "-timeout=0",
        f"-artifact_prefix={FOLDER}/",
        "-rss_limit_mb=0",
        "-verbosity=0",
        "-runs=-1",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], executions.one, custom_mutator=custom)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
