"""What a machine can do to a run: full disks, limits, missing permissions, clocks that jump, signals."""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hard.forked import Ended, command, finish, run, start
from hard.world import STAGES, Experiment, World, faults_of, repeated

NOBODY = 65534
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MB = 2**20
#: Exit code -> what glibc says when it ends a process that has no memory for what a thread needs.
NO_MEMORY_IN_GLIBC = {
    127: "cannot allocate memory for thread-local data",
    -signal.SIGABRT: "Fatal glibc error: failed to register TLS destructor: out of memory",
}


@dataclass(frozen=True)
class Fault:
    """A disturbance: done to the child before its command, or to the folder around it."""

    name: str
    before: Callable[[], None] = lambda: None
    around: Callable[[Path], Any] | None = None


def file_size(limit: int) -> Fault:
    return Fault(f"file size {limit}", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))


def open_files(more: int) -> Fault:
    """Let a child open so many files more than it has open."""

    def before() -> None:
        limit = len(os.listdir("/proc/self/fd")) + more  # noqa: PTH208
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    return Fault(f"{more} open files", before)


def address_space(more_mb: int) -> Fault:
    """Let a child take so much more memory than it has."""

    def before() -> None:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
        limit = pages * resource.getpagesize() + more_mb * MB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    return Fault(f"{more_mb} MB of memory", before)


def full_disk(folder: str, size: int) -> Fault:
    """Mount a file system of so many bytes; the check of free space, done before, sees a larger one."""

    @contextmanager
    def around(work: Path) -> Iterator[None]:
        with mounted(work / folder, f"size={size}"):
            yield

    return Fault(f"{size} bytes in {folder}", _believe_in_space, around)


def read_only(folder: str) -> Fault:
    @contextmanager
    def around(work: Path) -> Iterator[None]:
        with mounted(work / folder, "size=64m,ro"):
            yield

    return Fault(f"read-only {folder}", around=around)


def plain_user() -> Fault:
    """Run as a user that may read everything and write nothing but temporary files."""

    @contextmanager
    def around(work: Path) -> Iterator[None]:
        for folder in ("tmp", "spill"):
            (work / folder).chmod(0o777)
        yield
        for folder in ("tmp", "spill"):
            (work / folder).chmod(0o755)

    return Fault("plain user", lambda: os.setuid(NOBODY), around)


def clock_jumps() -> Fault:
    def before() -> None:
        real, jumps = time.time, itertools.cycle((0.0, 86_400.0, -86_400.0))
        time.time = lambda: real() + next(jumps)

    return Fault("clock jumps", before)


def _believe_in_space() -> None:
    import shutil

    real = shutil.disk_usage
    shutil.disk_usage = lambda path: real(path)._replace(free=10**12)  # type: ignore[assignment]


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a file system in memory over a folder, and remove what was written to it at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(
        b"tmpfs",
        os.fsencode(folder),
        b"tmpfs",
        1 if "ro" in options.split(",") else 0,
        options.replace(",ro", "").encode(),
    ):
        raise OSError(ctypes.get_errno(), f"mount {folder}")
    try:
        yield
    finally:
        libc.umount2(os.fsencode(folder), 2)


def can_mount() -> bool:
    """Return whether this process may mount file systems: root outside a container may."""
    probe = Path("/tmp") / f".hgsp-mount-{os.getpid()}"
    probe.mkdir()
    try:
        with mounted(probe, "size=4096"):
            return True
    except OSError:
        return False
    finally:
        probe.rmdir()


def faults() -> list[Fault]:
    """Return every fault that this machine can be given."""
    found = [file_size(size) for size in (0, 500, 4_000, 20_000, 60_000, 150_000)]
    found += [open_files(more) for more in (0, 1, 2, 4, 8)]
    found += [address_space(more) for more in (2, 8, 24)]
    found.append(clock_jumps())
    if os.getuid() == 0:
        found.append(plain_user())
        if can_mount():
            found += [full_disk("out", size) for size in (4_096, 40_960, 98_304, 200_704)]
            found += [full_disk("tmp", 4_096), full_disk("spill", 4_096), read_only("out"), read_only("tmp")]
    return found


def disturb(world: World, name: str, fault: Fault) -> list[str]:
    """Run a stage with a fault and again without, and return everything wrong."""
    stage = STAGES[name]
    work = world.new_work(f"fault-{name}-{os.getpid()}", stage)

    def before() -> None:
        stage.before()
        fault.before()

    most_lines = 2 if name == "study" else 1
    if fault.around is None:
        problems = judged(run(work, stage.arguments, before), most_lines) + faults_of(world, name, work)
    else:
        with fault.around(work):
            problems = judged(run(work, stage.arguments, before), most_lines)
            if stage.old is None or "out" not in fault.name:  # what was there is below the mount
                problems += faults_of(world, name, work)
    return problems + repeated(world, name, work)


def judged(ended: Ended, most_lines: int = 1) -> list[str]:
    """Return everything wrong with how a command ended: hanging, killed, a traceback, no line or several.

    ``most_lines``: a study has one for each of its cells.
    """
    if ended.code is None:
        return ["hangs"]
    if ended.code in NO_MEMORY_IN_GLIBC and NO_MEMORY_IN_GLIBC[ended.code] in ended.errors:
        return []
    problems = []
    if ended.code not in (0, 1, 2):
        problems.append(f"exit code {ended.code}: {ended.errors[-300:]}")
    if "Traceback" in ended.errors:
        problems.append(f"traceback: {ended.errors[-600:]}")
    elif ended.code in (1, 2) and not 1 <= len(ended.error_lines) <= most_lines:
        problems.append(f"{len(ended.error_lines)} lines: {ended.errors[-300:]}")
    return problems


def interrupt(world: World, name: str, number: int, after: float) -> list[str]:
    """Send a stage a signal, and return everything wrong; nothing may be left but state to resume from."""
    stage = STAGES[name]
    work = world.new_work(f"signal-{name}-{os.getpid()}", stage)
    ended = run(work, stage.arguments, stage.before, send=number, after=after)
    # before a command begins and once it has ended, a signal ends the process as it ends any other
    problems = ([] if ended.code == -number else judged(ended)) + faults_of(world, name, work)
    if ended.code == 1 and "interrupted" not in ended.errors:
        problems.append(f"no word of the interrupt: {ended.errors[-200:]}")
    hidden = [path.name for path in work.rglob(".*") if path.suffix in (".partial", ".replaced", ".scratch")]
    problems += [f"leftovers: {hidden}"] if hidden else []
    return problems + repeated(world, name, work)


def interrupts(world: World, name: str, count: int, seed: int = 0) -> Iterator[Experiment]:
    """Yield so many signals at random moments, as label and experiment."""
    moments = random.Random(seed)
    for index in range(count):
        number, after = SIGNALS[index % len(SIGNALS)], moments.uniform(0, world.seconds[name])
        label = f"{signal.Signals(number).name} after {after:.2f} s"
        yield label, lambda number=number, after=after: interrupt(world, name, number, after)


def close_stdout(world: World, name: str) -> list[str]:
    """Run a stage whose output nobody reads, as of ``hgsp ... | head -1``."""
    stage = STAGES[name]
    work = world.new_work(f"pipe-{name}-{os.getpid()}", stage)
    reader, writer = os.pipe()
    os.close(reader)
    ended = finish(*start(work, command(stage.arguments, stage.before), writer))
    os.close(writer)
    noisy = "Traceback" in ended.errors or "BrokenPipe" in ended.errors or ended.error_lines
    problems = [f"not quiet: {ended.errors[-300:]}"] if noisy or ended.code not in (0, 1) else []
    return problems + faults_of(world, name, work) + repeated(world, name, work)
