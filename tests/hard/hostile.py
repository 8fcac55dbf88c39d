"""Folders with links, pipes and devices where results go, and names that are markup, lines or no text at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hard.faults import judged
from hard.forked import Ended, run
from hard.world import INPUTS, STAGES, Experiment, Stage, World

NAMES = (
    "[/bold] [red]x",
    "two\nlines",
    "\udce4\udcff",
    "${HOME} `id`",
    "-p",
    "a" * 200,
    "\u202eright to left",
    "<b>&amp;",
)
#: Stage -> files that it writes into a folder that is there already.
WRITTEN = {
    "evaluation": ("results.json", "results.md", "evaluation.log", "results.run.yaml", "report.html", "report.md"),
    "summary": ("summary.csv", "summary.md", "summary.tex", "summary_layers.png", "report.html", "report.md"),
    "report": ("report.html", "report.md"),
}
KINDS = ("link", "dangling link", "pipe", "device", "folder")
_COMMANDS = {
    "evaluation": STAGES["evaluation"].arguments,
    "summary": ("summarize", f"{INPUTS}/pruned", "--output", "out/e"),
    "report": ("report", f"{INPUTS}/pruned", "--output", "out/e"),
}


def plant(kind: str, path: Path, victim: Path) -> None:
    """Put something where a command will write; a link leads to ``victim``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind in ("link", "dangling link"):
        path.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))  # as /dev/null
    else:
        path.mkdir()


def planted(world: World, name: str, file: str, kind: str) -> list[str]:
    """Run a command over a planted file: nothing outside may change, and nothing may hang."""
    work = world.new_work(f"hostile-{os.getpid()}", Stage((), ""))
    victim = work / "victim"
    if kind == "link":
        victim.write_text("precious", encoding="utf-8")
    plant(kind, work / "out/e" / file, victim)
    problems = judged(run(work, _COMMANDS[name]))
    if kind == "link" and victim.read_text(encoding="utf-8") != "precious":
        problems.append("wrote through a link")
    if kind == "dangling link" and victim.exists():
        problems.append("wrote through a dangling link")
    return problems


def linked_result(world: World, dangling: bool) -> list[str]:
    """Prune to a name that is a link: refused where it leads nowhere, else a result is not replaced unasked."""
    stage = STAGES["cut"]
    work = world.new_work(f"hostile-{os.getpid()}", stage)
    if not dangling:
        (work / "elsewhere").mkdir()
    (work / "out/p").symlink_to(work / "elsewhere")
    ended = run(work, stage.arguments)
    problems = judged(ended)
    if ended.code != 2 or any((work / "elsewhere").glob("*")):
        problems.append(f"exit code {ended.code}; wrote through a link")
    return problems


def named(world: World, name: str) -> list[str]:
    """Prune a model folder of such a name to a result of such a name."""
    work = world.new_work(f"hostile-{os.getpid()}", Stage((), ""))
    shutil.copytree(world.root / "inputs/dense", work / f"m{name}")
    arguments = list(STAGES["cut"].arguments)
    arguments[arguments.index("--base_model") + 1] = f"./m{name}"
    arguments[arguments.index("--output_name") + 1] = f"r{name}"
    ended: Ended = run(work, arguments)
    problems = judged(ended)
    if ended.code == 0 and not (work / "out" / f"r{name}" / "pruning_analysis.json").is_file():
        problems.append("exit code 0 without a result")
    return problems


def experiments(world: World) -> Iterator[Experiment]:
    """Yield every experiment with its label."""
    for name, files in WRITTEN.items():
        for file in files:
            for kind in KINDS if os.getuid() == 0 else KINDS[:3]:
                yield f"{kind} as {file} of {name}", lambda n=name, f=file, k=kind: planted(world, n, f, k)
    for dangling in (False, True):
        yield f"result is a {'dangling ' * dangling}link", lambda d=dangling: linked_result(world, d)
    for name in NAMES:
        yield f"name {name!r}", lambda n=name: named(world, n)
