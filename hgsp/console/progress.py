"""Progress of long steps, and their timings. Library code is silent by default."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Timings(dict[str, float]):
    """Seconds spent per stage."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the ``with`` block to stage ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self[name] = self.get(name, 0.0) + time.perf_counter() - start


class Progress(Protocol):
    """A callable that yields from ``items`` and reports progress; ``total`` is the number of items."""

    def __call__(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]: ...


def silent(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Yield from ``items`` without reporting."""
    yield from items


def terminal(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Report to stderr: a bar with rate and time left on a terminal, elsewhere a line every ten seconds."""
    if sys.stderr.isatty():
        yield from _bar(items, label, total)
    else:
        yield from _lines(items, label, total)


def _bar(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, rate="")
        start = time.monotonic()
        for done, item in enumerate(items, 1):
            if done == 1:
                start = time.monotonic()
            yield item
            bar.update(task, completed=done, rate=f"{done / (time.monotonic() - start):.2f}/s")


def _lines(items: Iterable[Item], label: str, total: int, every_s: float = 10.0) -> Iterator[Item]:
    start = reported = time.monotonic()
    for done, item in enumerate(items, 1):
        if done == 1:
            start = time.monotonic()  # setup before the first item is not part of the rate
        yield item
        now = time.monotonic()
        if now - reported >= every_s:
            reported, rate = now, done / (now - start)
            print(f"{label}: {done}/{total}, {rate:.2f}/s, {(total - done) / rate:.0f} s left", file=sys.stderr)
