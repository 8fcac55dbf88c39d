"""Temporary folders: removed at the end, by the next run after a kill, and never while their process lives."""

import subprocess
import sys

import pytest

from hgsp.console import scratch
from hgsp.console.scratch import ScratchFolder
from hgsp.environment import lock_of
from hgsp.errors import InputError

HOLD = """
import sys
from pathlib import Path
from hgsp.console.scratch import ScratchFolder
folder = ScratchFolder(Path(sys.argv[1]))
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_it_is_there_in_the_block_and_gone_afterwards(tmp_path):
    with ScratchFolder(tmp_path / "new") as folder:
        (folder / "file").write_text("content")
    assert not list((tmp_path / "new").iterdir())


def test_one_that_is_forgotten_goes_with_its_owner(tmp_path):
    folder = ScratchFolder(tmp_path)
    assert folder.path.exists()
    del folder
    assert not list(tmp_path.iterdir())


def test_those_of_killed_processes_alone_are_removed(tmp_path):
    pytest.importorskip("fcntl")
    for name in (".hgsp-abcd1234.scratch", "hgsp-abcd1234.scratch", ".hgsp-mine.scratch", ".other-abcd1234.scratch"):
        (tmp_path / name).mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        living = other.stdout.readline().strip()
        with ScratchFolder(tmp_path):
            names = {path.name for path in tmp_path.iterdir()}
            assert living.rpartition("/")[2] in names
            assert ".hgsp-abcd1234.scratch" not in names
        other.kill()
    with ScratchFolder(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {
        *("hgsp-abcd1234.scratch", ".hgsp-mine.scratch", ".other-abcd1234.scratch")
    }


def test_one_that_another_process_took_for_abandoned_is_made_again(tmp_path, monkeypatch):
    taken = []

    def taking(path, *, wait):
        if not taken:
            taken.append(path)
            path.rmdir()
        return lock_of(path, wait=wait)

    monkeypatch.setattr(scratch, "lock_of", taking)
    with ScratchFolder(tmp_path) as folder:
        assert folder.exists()
        assert folder not in taken


def test_it_needs_no_locks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (tmp_path / ".hgsp-abcd1234.scratch").mkdir()
    with ScratchFolder(tmp_path) as folder:
        assert folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".hgsp-abcd1234.scratch"]


def test_a_full_folder_for_temporary_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("hgsp.console.disk.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match=r"free disk for temporary files; got 10 B.*TMPDIR"):
        ScratchFolder()
