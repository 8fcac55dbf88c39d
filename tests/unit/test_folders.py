"""Folders of results appear whole or not at all, and never in place of something nobody wanted replaced."""

import stat

import pytest

from hgsp.errors import InputError
from hgsp.folders import new_folder


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "a" / "b"
    with new_folder(target, overwrite=False) as partial:
        (partial / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["b"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("overwrite", [False, True])
def test_failure_or_interrupt_leaves_nothing_new_and_what_was_there(tmp_path, error, overwrite):
    target = tmp_path / "result"
    if overwrite:
        target.mkdir()
        (target / "old").write_text("old")

    def fail_halfway():
        with new_folder(target, overwrite) as partial:
            (partial / "new").write_text("half")
            raise error

    with pytest.raises(error):
        fail_halfway()
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == ({"result", "result/old"} if overwrite else set())


def test_overwrite_replaces_the_whole_folder(tmp_path):
    (tmp_path / "old").write_text("old")
    target = tmp_path / "result"
    target.mkdir()
    (target / "old").write_text("old")
    with new_folder(target, overwrite=True) as partial:
        (partial / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]


def test_an_existing_folder_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(InputError, match="--overwrite"), new_folder(tmp_path, overwrite=False):
        pytest.fail("the block must not run")
