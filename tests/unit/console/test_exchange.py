"""Two names change places, or nothing happens."""

import ctypes
import errno
import sys

import pytest

from hgsp.console import exchange as exchanging
from hgsp.console.exchange import exchange


@pytest.fixture
def two(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"was {name}").touch()
    return tmp_path / "a", tmp_path / "b"


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the system cannot")
def test_two_folders_change_places(two):
    assert exchange(*two)
    assert [next(folder.iterdir()).name for folder in two] == ["was b", "was a"]


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the system cannot")
def test_a_missing_folder_is_an_error_with_both_names(two, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a.*missing"):
        exchange(two[0], tmp_path / "missing")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_changes_nothing(two, monkeypatch, number):
    def refuse(*_):
        ctypes.set_errno(number)
        return -1

    library = type("Library", (), {"renameat2": staticmethod(refuse), "renamex_np": staticmethod(refuse)})
    monkeypatch.setattr(exchanging.ctypes, "CDLL", lambda *_, **__: library)
    assert not exchange(*two)


def test_a_system_without_the_function_changes_nothing(two, monkeypatch):
    monkeypatch.setattr(exchanging.ctypes, "CDLL", lambda *_, **__: object())
    assert not exchange(*two)
