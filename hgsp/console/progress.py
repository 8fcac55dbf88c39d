"""Progress of long steps, and their timings. Library code is silent by default."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

LOG = logging.getLogger("hgsp")
Item = TypeVar("Item")
#: The label of a step, or a function that returns it as it changes.
Label = str | Callable[[], str]

#: Seconds below which a finished stage is not worth a line.
SHORTEST_S = 0.05


class Timings(dict[str, float]):
    """Seconds spent per stage.

    Args:
        earlier: seconds to add to.
        finished: called with the name and the seconds of a stage that ends without an error.
    """

    def __init__(
        self, earlier: Mapping[str, float] | None = None, finished: Callable[[str, float], None] | None = None
    ) -> None:
        super().__init__(earlier or {})
        self._finished = finished

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the ``with`` block to stage ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self[name] = self.get(name, 0.0) + seconds
        if self._finished is not None:
            self._finished(name, seconds)


def log_finished(name: str, seconds: float) -> None:
    """Log that a stage has ended."""
    if seconds >= SHORTEST_S:
        LOG.info("done: %s, %.1f s", name, seconds)


class Progress(Protocol):
    """A callable that yields from ``items`` and reports progress; ``total`` is the number of items."""

    def __call__(self, items: Iterable[Item], label: Label, total: int) -> Iterator[Item]: ...


def silent(items: Iterable[Item], label: Label, total: int) -> Iterator[Item]:
    """Yield from ``items`` without reporting."""
    yield from items


def terminal(items: Iterable[Item], label: Label, total: int) -> Iterator[Item]:
    """Report to stderr: a bar with rate and time left on a terminal, elsewhere a line every ten seconds.

    A finished bar stays, with the seconds it took.
    """
    if sys.stderr.isatty():
        yield from _bar(items, label, total)
    else:
        yield from _lines(items, label, total)


def _bar(items: Iterable[Item], label: Label, total: int) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(_text(label), total=total, rate="")
        start = time.monotonic()
        for done, item in enumerate(items, 1):
            if done == 1:
                start = time.monotonic()
            yield item
            rate = f"{done / (time.monotonic() - start):.2f}/s"
            bar.update(task, completed=done, rate=rate, description=_text(label))


def _lines(items: Iterable[Item], label: Label, total: int, every_s: float = 10.0) -> Iterator[Item]:
    start = reported = time.monotonic()
    for done, item in enumerate(items, 1):
        if done == 1:
            start = time.monotonic()  # setup before the first item is not part of the rate
        yield item
        now = time.monotonic()
        if now - reported >= every_s:
            reported, rate = now, done / (now - start)
            print(f"{_text(label)}: {done}/{total}, {rate:.2f}/s, {(total - done) / rate:.0f} s left", file=sys.stderr)


def _text(label: Label) -> str:
    return label if isinstance(label, str) else label()
