"""Processes of cells: one per device at a time, interrupted together, locked against a second study."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from hgsp.errors import InputError

#: Seconds that interrupted cells have to remove their partial output.
GRACE_S = 60.0
#: Seconds between looks at running cells.
POLL_S = 0.2
CELL_LOCK = ".run_all_experiments.cell{}.lock"

#: Starts the pruning command with these arguments, for the device of this number, with its output in a file or not.
#: Returns a process, of which ``poll``, ``wait``, ``send_signal`` and ``kill`` are used as of a ``Popen``.
Start = Callable[[list[str], int, Path | None], Any]


@contextlib.contextmanager
def study_lock(results_dir: str) -> Iterator[Path]:
    """Lock a results folder; yields the folder of the further locks that cells hold while they run.

    Raises:
        InputError: another study, or a cell that outlived a killed one, is running in the folder.
    """
    folder = Path(results_dir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".run_all_experiments.lock", timeout=0):
            for cell_lock in folder.glob(CELL_LOCK.format("*")):
                with FileLock(cell_lock, timeout=0):
                    pass
            yield folder
    except Timeout as error:
        raise InputError(
            expected=f"one study at a time in {results_dir}",
            got="another study, or a cell that outlived a killed one, still running",
            remedy="wait for it to end, or choose another --results_dir",
        ) from error


def check_devices(devices: Sequence[str]) -> None:
    """Refuse devices that this machine does not have, without opening any: that would take memory on each GPU.

    Raises:
        InputError: names the device.
    """
    import torch

    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    known = ["cpu", "mps", *found]
    for device in devices:
        if device not in known:
            raise InputError(expected=f"--devices among {', '.join(known)}", got=f"'{device}'", remedy="see nvidia-smi")


def subprocess_starter(command: Sequence[str], locks: Path) -> Start:
    """Return a function that starts a cell: ``command``, the lock that it holds, and the cell's arguments."""

    def start(arguments: list[str], number: int, log: Path | None) -> Any:
        lock = locks / CELL_LOCK.format(number or "")
        whole = [*command, str(lock), *arguments]
        if log is None:
            return subprocess.Popen(whole)
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.is_symlink():  # of a downloaded folder: its target is not ours to write
            log.unlink()
        with log.open("ab") as sink:
            return subprocess.Popen(whole, stdout=sink, stderr=subprocess.STDOUT)

    return start


def wait_for_one(running: Mapping[int, Any]) -> int:
    """Wait until one of the processes has ended and return its key."""
    while True:
        for key, process in running.items():
            if process.poll() is not None:
                return key
        time.sleep(POLL_S)


@contextlib.contextmanager
def interrupted_together(running: Mapping[int, Any]) -> Iterator[None]:
    """End the running processes before a KeyboardInterrupt goes on.

    Ctrl-C reaches them directly. SIGTERM reaches only the study, which passes it on for them to clean up.
    """

    def interrupt(number: int, frame: FrameType | None) -> Any:
        for process in running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        end = time.monotonic() + GRACE_S
        for process in running.values():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
