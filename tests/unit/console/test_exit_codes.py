"""Failures of the environment are one line, and bugs keep their tracebacks."""

import errno
import os
import signal
import sys
import time

import pytest
from safetensors import SafetensorError

from hgsp.console.exit_codes import run_guarded
from hgsp.errors import InputError

ENVIRONMENT = {
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "out/p"), "(out/p); free space"),
    "file size": (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
    "open files": (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    "a folder": (IsADirectoryError(errno.EISDIR, "Is a directory", "results.json"), "move it away"),
    "any other": (FileNotFoundError(errno.ENOENT, "No such file", "gone"), "nothing else changes these files"),
    "of safetensors": (SafetensorError("Error while serializing: I/O error: No space left on device"), "free space"),
    "damaged": (SafetensorError("Error while deserializing header: incomplete"), "check the disk"),
    "of torch.save": (RuntimeError("[enforce fail at inline_container.cc:1] . PytorchStreamWriter failed"), "free"),
    "of a mapping": (RuntimeError("unable to resize file <x>: File too large (27)"), "ulimit -f"),
    "threads": (RuntimeError("can't start new thread"), "free memory"),
    "memory": (MemoryError(), "out of memory (MemoryError)"),
    "of torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
    "of tokenizers": (Exception("No space left on device (os error 28)"), "free space"),
    "of oneDNN": (RuntimeError("could not create a primitive"), "out of memory"),
    "a library": (ImportError("libx.so: failed to map segment from shared object"), "free memory"),
}


def ending_with(error):
    def run():
        raise error

    return run_guarded(run)


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_a_failure_of_the_environment_is_one_line(name, capsys):
    error, said = ENVIRONMENT[name]
    assert ending_with(error) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ImportError("cannot import name x"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        ending_with(error)


def test_a_name_with_line_breaks_stays_on_one_line(capsys):
    assert ending_with(InputError(expected="a folder", got="two\nlines", remedy="rename it")) == 2
    assert capsys.readouterr().err == "error: expected a folder; got two\\nlines; rename it\n"


def test_help_that_nobody_reads_ends_quietly(capfd, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)

        def run():
            print("usage: ...")
            sys.exit(0)

        assert run_guarded(run) == 1
        monkeypatch.undo()
    assert capfd.readouterr().err == ""


@pytest.fixture
def interruptible():
    """Handle SIGINT as in a terminal: a shell starts its background jobs, as of a CI, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_while_an_object_is_deleted_is_not_lost(capsys, interruptible):
    class Interrupted:
        def __del__(self):
            raise KeyboardInterrupt

    def run():
        interrupted = Interrupted()
        del interrupted
        end = time.monotonic() + 20
        while time.monotonic() < end:
            pass
        return 0

    assert run_guarded(run) == 1
    assert capsys.readouterr().err == "error: interrupted; no partial output is left behind\n"
