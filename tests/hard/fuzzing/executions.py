"""Executions of a parser: counted, limited in time, with the first input of every kind of failure."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from hgsp.errors import InputError

#: Seconds after which one execution counts as hanging: building as many layers as a config may ask for takes half.
HANG_S = 60
ACCEPTED, REFUSED = "accepted", "refused"


class Hang(BaseException):
    """An execution that took too long; no ``except`` of a parser catches it."""


def outcome_of(run: Callable[[bytes], Any], content: bytes) -> str:
    """Return "accepted", "refused", or the failure: its error and the last line of ours in the traceback."""
    try:
        run(content)
        return ACCEPTED
    except InputError:
        return REFUSED
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - anything but an InputError is what is looked for
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/hgsp/" in frame.filename] or frames
        place = f"{ours[-1].filename.rpartition('/hgsp/')[2]}:{ours[-1].lineno} in {ours[-1].name}"
        message = " ".join(str(error).split())[:120].encode("ascii", "backslashreplace").decode()
        return f"{type(error).__name__} at {place}: {message}"


class Executions:
    """Counts of one parser, written when its executions or its seconds are spent."""

    def __init__(self, run: Callable[[bytes], Any], output: Path, limit: int, deadline: float) -> None:
        self._run, self._output, self._limit, self._deadline = run, output, limit, deadline
        self.counts = {ACCEPTED: 0, REFUSED: 0}
        self._failures: dict[str, dict[str, Any]] = {}
        self.guided = False
        self._done = 0
        self._last = os.open(output.with_suffix(".last"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        signal.signal(signal.SIGALRM, _hang)

    def one(self, content: bytes) -> None:
        """Run the parser once; ends the process after the last execution."""
        os.pwrite(self._last, content, 0)
        os.ftruncate(self._last, len(content))  # a file that is opened again each time waits for the disk
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        try:
            outcome = outcome_of(self._run, content)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self._done += 1
        if outcome in self.counts:
            self.counts[outcome] += 1
        else:
            self._keep(outcome, content)
        if self._done >= self._limit or time.monotonic() > self._deadline:
            self.write()
            os._exit(0)  # libFuzzer has no other end that counts as success

    def _keep(self, failure: str, content: bytes) -> None:
        place = failure.partition(": ")[0]
        if place not in self._failures:
            name = f"{self._output.stem}-{hashlib.sha256(content).hexdigest()[:12]}"
            self._output.with_name(name).write_bytes(content)
            self._failures[place] = {"error": failure, "count": 0, "input": name}
        self._failures[place]["count"] += 1

    def write(self) -> None:
        """Write the counts."""
        counts = {"executions": self._done, **self.counts, "guided": self.guided}
        self._output.write_text(json.dumps(counts | {"failures": list(self._failures.values())}))


def _hang(_number: int, _frame: FrameType | None) -> None:
    raise Hang(f"no answer after {HANG_S} s")
