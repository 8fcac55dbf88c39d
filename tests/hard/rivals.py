"""Two commands at once on the same result, scores, study or results.json."""

from __future__ import annotations

import json
import os

from hard.faults import judged
from hard.forked import command, finish, start
from hard.world import STAGES, World, faults_of, repeated


def race(world: World, name: str) -> list[str]:
    """Start a stage twice in one folder: one wins, the other is refused or finds the result, and nothing is mixed."""
    stage = STAGES[name]
    work = world.new_work(f"race-{name}-{os.getpid()}", stage)
    both = [start(work, command(stage.arguments, stage.before)) for _ in range(2)]
    ended = [finish(*one) for one in both]
    problems = [problem for one in ended for problem in judged(one)]
    codes = sorted(one.code for one in ended if one.code is not None)
    if codes not in ([0, 0], [0, 2]):
        problems.append(f"exit codes {codes}: {ended[0].errors[-200:]} {ended[1].errors[-200:]}")
    return problems + faults_of(world, name, work) + repeated(world, name, work)


def measure_twice(world: World) -> list[str]:
    """Measure two things of one model at once, into one results.json: both have to be there."""
    stage = STAGES["evaluation"]
    work = world.new_work(f"race-results-{os.getpid()}", stage)
    other = [part.replace("text.txt", "dense/../text.txt") for part in stage.arguments]
    other[other.index("--seq_len") + 1] = "48"
    both = [start(work, command(arguments)) for arguments in (stage.arguments, other)]
    ended = [finish(*one) for one in both]
    problems = [problem for one in ended for problem in judged(one)]
    results = json.loads((work / "out/e/results.json").read_text(encoding="utf-8"))["results"]
    lengths = {item["request"].get("seq_len") for item in results}
    if all(one.code == 0 for one in ended) and not {32, 48} <= lengths:
        problems.append(f"results of {sorted(map(str, lengths))} alone")
    return problems
