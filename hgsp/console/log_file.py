"""Logging to the terminal and to ``logs/training.log`` of a result."""

from __future__ import annotations

import logging
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table

from hgsp.console.tables import WIDTH
from hgsp.environment import replacing

LOG = logging.getLogger("hgsp")
#: Width in characters of tables that go to a file.
PLAIN_WIDTH = 140


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler  # Python 3.10 cannot subscript it


class _Terminal(_StreamHandler):
    """Writes to the ``sys.stderr`` of the moment, which prints above progress bars while one is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))
        self.addFilter(lambda record: not getattr(record, "file_only", False))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Go on without a terminal: nobody reads the lines of a closed one."""

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _File(logging.FileHandler):
    """Writes until the disk is full, which is no reason to lose the run."""

    _is_full = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_full:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        self._is_full = True
        LOG.warning("the log ends here: %s", sys.exc_info()[1])


class LogFile:
    """A context manager that sends the ``hgsp`` logger to the terminal and, with timestamps, to a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._copied = 0
        self._to_file = _File(path, encoding="utf-8", errors="backslashreplace")
        self._to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._to_terminal = _Terminal()

    def __enter__(self) -> LogFile:
        self._before = LOG.level, LOG.propagate
        LOG.setLevel(logging.INFO)
        LOG.propagate = False
        LOG.addHandler(self._to_file)
        LOG.addHandler(self._to_terminal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handler in (self._to_file, self._to_terminal):
            LOG.removeHandler(handler)
            with suppress(OSError):  # of a full disk, or a closed terminal
                handler.close()
        level, LOG.propagate = self._before
        LOG.setLevel(level)

    def copy_to(self, path: Path) -> None:
        """Copy the log so far."""
        self._flush()
        with replacing(path) as partial:
            shutil.copyfile(self._path, partial)
            self._copied = partial.stat().st_size

    def append_to(self, path: Path) -> None:
        """Append the lines since ``copy_to`` to the copy, in place: a run that is killed here leaves no other file."""
        self._flush()
        with self._path.open("rb") as source, path.open("ab") as copy:
            source.seek(self._copied)
            shutil.copyfileobj(source, copy)

    def _flush(self) -> None:
        with suppress(OSError):
            self._to_file.flush()


def show(table: Table) -> None:
    """Print a table to stdout and write its plain text to the log file."""
    console = Console(markup=False, emoji=False)  # names and paths may contain brackets
    console.width = max(console.width, WIDTH) if console.is_terminal else PLAIN_WIDTH
    console.print(table)
    plain = Console(width=PLAIN_WIDTH, color_system=None, markup=False, emoji=False)
    with plain.capture() as captured:
        plain.print(table)
    LOG.info("%s", captured.get(), extra={"file_only": True})
