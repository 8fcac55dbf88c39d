"""A command of hgsp in a forked child of a process that has imported everything: seconds less than a new Python."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Seconds after which a command counts as hanging; the machine may be busy.
PATIENCE_S = 600.0
#: The exit code of an exception that no command lets out.
CRASHED = 99


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, negative for a signal and None if it hung; stderr; seconds it took."""

    code: int | None
    errors: str
    seconds: float

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.errors.splitlines() if line.startswith("error: ")]


def import_everything() -> None:
    """Import before forking whatever a command may need; nothing may be computed, or torch has threads to lose."""
    import gguf  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401

    import hgsp.cli.summarize
    import hgsp.evaluation.run
    import hgsp.exports.export
    import hgsp.pipeline.prune  # noqa: F401


def start(work: Path, action: Callable[[], int], stdout: int | None = None) -> tuple[int, int]:
    """Fork a child that acts in ``work``; returns its process id and a descriptor to read its stderr from."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    code = CRASHED
    try:
        os.close(reader)
        _become(work, writer, stdout)
        code = action()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python reports an interrupt of its own end on several lines
        atexit._run_exitfuncs()  # os._exit leaves them out
        sys.stdout.flush()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except KeyboardInterrupt:  # before the command, where Python ends by the signal
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def _become(work: Path, errors: int, stdout: int | None) -> None:
    """Give the child its folders, streams and the default handling of warnings and logs."""
    import torch

    torch.set_num_threads(1)
    os.chdir(work)
    os.environ |= {"TMPDIR": str(work / "tmp"), "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    tempfile.tempdir = str(work / "tmp")  # Python would try it by a file that a kill leaves
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY) if stdout is None else stdout, 1)
    os.dup2(errors, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    for handler in list(logging.getLogger().handlers):
        logging.getLogger().removeHandler(handler)


def finish(
    child: int, reader: int, *, send: int | None = None, after: float = 0.0, patience: float = PATIENCE_S
) -> Ended:
    """Wait for a child; ``send`` is a signal to send it ``after`` seconds. One that hangs is killed."""
    begun, output = time.monotonic(), b""
    hung = False
    while True:
        elapsed = time.monotonic() - begun
        if send is not None and elapsed >= after:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, send)
            send = None
        if elapsed > patience and not hung:
            hung = True
            os.kill(child, signal.SIGKILL)
        wait = 0.5 if send is None else min(0.5, max(0.0, after - elapsed))
        if select.select([reader], [], [], wait)[0]:
            part = os.read(reader, 65536)
            output += part
            if not part:
                break
    os.close(reader)
    _, status = os.waitpid(child, 0)
    code = None if hung else os.waitstatus_to_exitcode(status)
    return Ended(code, output.decode(errors="replace"), time.monotonic() - begun)


def command(arguments: Sequence[str], before: Callable[[], None] = lambda: None) -> Callable[[], int]:
    """Return the action of a command line."""

    def action() -> int:
        from hgsp.cli.main import main

        before()
        return main(list(arguments))

    return action


def run(
    work: Path,
    arguments: Sequence[str],
    before: Callable[[], None] = lambda: None,
    *,
    send: int | None = None,
    after: float = 0.0,
    stdout: int | None = None,
) -> Ended:
    """Run a command in a child and wait for it."""
    child, reader = start(work, command(arguments, before), stdout)
    return finish(child, reader, send=send, after=after)
