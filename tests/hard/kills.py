"""SIGKILL at every call that writes, and at random moments."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hard.forked import run
from hard.world import STAGES, Experiment, World, faults_of, repeated

#: Audit events of calls that change files; ``open`` counts if it may write.
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def dying_at(number: int, work: Path) -> Callable[[], None]:
    """Return what lets a child kill itself before its nth call that changes a file; 0 prints how many there are."""

    def prepare() -> None:
        count = 0

        def on_write() -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open":
                changes = isinstance(arguments[2], int) and bool(arguments[2] & _WRITES)
            else:
                changes = event in CHANGES
            if changes and _is_ours(arguments[0], work):
                on_write()

        sys.addaudithook(hook)
        _count_calls(on_write)
        if not number:
            import atexit

            atexit.register(lambda: print(f"writes: {count}", file=sys.stderr))

    return prepare


def _is_ours(path: Any, work: Path) -> bool:
    if isinstance(path, int):
        return False
    name = os.fsdecode(path)
    return not os.path.isabs(name) or name.startswith(str(work))  # noqa: PTH117


def _count_calls(on_write: Callable[[], None]) -> None:
    """Count calls of other languages, which raise no audit event, before and after."""
    import safetensors.torch
    import torch

    from hgsp.console import result_folders

    def counted(call: Any) -> Any:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            on_write()
            result = call(*arguments, **named)
            on_write()
            return result

        return wrapper

    for module, name in (
        (os, "fsync"),
        (torch, "save"),
        (safetensors.torch, "serialize_file"),
        (result_folders, "exchange"),
    ):
        setattr(module, name, counted(getattr(module, name)))


def count_writes(world: World, name: str) -> int:
    """Return how many calls of a stage change files."""
    stage = STAGES[name]
    work = world.new_work(f"count-{name}", stage)
    counting = dying_at(0, work)
    ended = run(work, stage.arguments, lambda: (stage.before(), counting())[0])
    assert ended.code == 0, ended.errors
    return int(ended.errors.rpartition("writes: ")[2])


def at_writes(world: World, name: str, at_most: int) -> Iterator[Experiment]:
    """Yield a kill before every write of a stage, or before so many of them at equal distances."""
    total = count_writes(world, name)
    step = max(1.0, total / at_most)
    for number in sorted({round(1 + index * step) for index in range(int(total / step))}):
        yield f"write {number} of {total}", lambda number=number: kill_at_write(world, name, number)


def kill_at_write(world: World, name: str, number: int) -> list[str]:
    """Kill a stage before its nth write, repeat it, and return everything wrong."""
    stage = STAGES[name]
    work = world.new_work(f"kill-{name}-{os.getpid()}", stage)
    dying = dying_at(number, work)
    ended = run(work, stage.arguments, lambda: (stage.before(), dying())[0])
    problems = [] if ended.code == -signal.SIGKILL else [f"was not killed: {ended.code} {ended.errors[-200:]}"]
    return problems + faults_of(world, name, work) + repeated(world, name, work)


def at_moments(world: World, name: str, count: int, seed: int = 0) -> Iterator[Experiment]:
    """Yield kills at random moments of a stage's usual time."""
    moments = random.Random(seed)
    for _ in range(count):
        after = moments.uniform(0, world.seconds[name])
        yield f"after {after:.2f} s", lambda after=after: kill_at_moment(world, name, after)


def kill_at_moment(world: World, name: str, after: float) -> list[str]:
    """Kill a stage after some seconds, repeat it, and return everything wrong."""
    stage = STAGES[name]
    work = world.new_work(f"moment-{name}-{os.getpid()}", stage)
    run(work, stage.arguments, stage.before, send=signal.SIGKILL, after=after)
    return faults_of(world, name, work) + repeated(world, name, work)
