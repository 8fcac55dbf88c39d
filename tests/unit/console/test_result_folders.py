"""Result folders appear complete or not at all, and never replace anything but a result."""

import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from hgsp.console import result_folders
from hgsp.console.result_folders import check_target, new_folder, remove_leftovers, reserved
from hgsp.environment import umask
from hgsp.errors import InputError


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "a" / "b"
    with new_folder(target, overwrite=False) as partial:
        (partial / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert [path.name for path in target.parent.iterdir()] == ["b"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_its_permissions_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with new_folder(tmp_path / "a", overwrite=False):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


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


def with_old(tmp_path):
    """A result to replace."""
    target = tmp_path / "result"
    target.mkdir()
    (target / "pruning_analysis.json").write_text("{}")
    return target


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no exchange of names")
def test_old_and_new_are_exchanged_in_one_step(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "rename", None)  # calling it would be a TypeError
    target = with_old(tmp_path)
    with new_folder(target, overwrite=True) as partial:
        (partial / "new").write_text("new")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["result", "result/new"]


@pytest.mark.parametrize("fails", [None, 1, 2])
def test_without_an_exchange_the_old_result_comes_back_if_the_new_one_does_not(tmp_path, monkeypatch, fails):
    target, renamed, rename = with_old(tmp_path), [], Path.rename

    def failing(path, goal):
        renamed.append(path)
        if len(renamed) == fails:
            raise KeyboardInterrupt
        return rename(path, goal)

    monkeypatch.setattr(result_folders, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", failing)
    with suppress(KeyboardInterrupt), new_folder(target, overwrite=True) as partial:
        (partial / "new").write_text("new")
    left = [path.name for path in target.iterdir()]
    assert left == (["new"] if fails is None else ["pruning_analysis.json"])
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_second_interrupt_loses_no_result_that_was_moved_aside(tmp_path, monkeypatch):
    target, rename = with_old(tmp_path), Path.rename
    interrupts = iter([False, True, True])

    def failing(path, goal):
        if next(interrupts):
            raise KeyboardInterrupt
        return rename(path, goal)

    monkeypatch.setattr(result_folders, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", failing)
    with suppress(KeyboardInterrupt), new_folder(target, overwrite=True) as partial:
        (partial / "new").write_text("new")
    monkeypatch.undo()
    with reserved(target):
        assert [path.name for path in target.iterdir()] == ["pruning_analysis.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_an_interrupt_after_the_exchange_leaves_the_new_result(tmp_path, monkeypatch):
    target = with_old(tmp_path)

    def interrupted(path):
        if path == tmp_path:
            raise KeyboardInterrupt

    monkeypatch.setattr(result_folders, "sync", interrupted)
    with suppress(KeyboardInterrupt), new_folder(target, overwrite=True) as partial:
        (partial / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_files_get_the_permissions_of_the_umask_and_reach_the_disk_before_their_folders(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(result_folders, "sync", lambda path: synced.append(path.name))
    with new_folder(tmp_path / "a", overwrite=False) as partial:
        (partial / "inner").mkdir(0o700)
        (partial / "inner" / "file").touch(0o600)
    mask = umask()
    assert stat.S_IMODE((tmp_path / "a" / "inner").stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((tmp_path / "a" / "inner" / "file").stat().st_mode) == 0o666 & ~mask
    assert synced == ["file", "inner", partial.name, tmp_path.name]


def test_what_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch):
    target = with_old(tmp_path)
    monkeypatch.setattr(result_folders.os, "access", lambda path, _mode: path != tmp_path)
    with pytest.raises(InputError, match="writable result folder"):
        check_target(target, True, "--output_name")
    monkeypatch.undo()
    monkeypatch.setattr(result_folders.os.path, "ismount", lambda path: path == target)
    with pytest.raises(InputError, match="a mount point"):
        check_target(target, True, "--output_name")


def test_an_existing_folder_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(InputError, match="--overwrite"), new_folder(tmp_path, overwrite=False):
        pytest.fail("the block must not run")


def test_a_linked_folder_is_replaced_where_it_is_and_stays_linked(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "old").write_text("old")
    link = tmp_path / "result"
    link.symlink_to("disk")
    with new_folder(link, overwrite=True) as partial:
        (partial / "new").write_text("new")
    assert link.is_symlink()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "disk",
        "disk/new",
        "result",
    ]


@pytest.mark.parametrize(
    ("target", "got"),
    [
        ("work", "work to be replaced while .*work is in use"),
        ("models", "models/dense is in use"),
        ("models/dense", "models/dense is in use"),
        ("notes", "contains something else"),
        ("file/result", "file, which is not"),
        ("file", "file, which is not"),
    ],
)
def test_overwrite_spares_what_is_needed_and_what_is_no_result(tmp_path, monkeypatch, target, got):
    """The folder of models also contains a report here; the input inside it takes precedence."""
    for name in ("work/pruning_analysis.json", "models/pruning_analysis.json", "models/dense/x", "notes/x", "file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    monkeypatch.chdir(tmp_path / "work")
    reads = ("some/hub-id", None, "../models/dense", str(tmp_path / "missing"))
    with pytest.raises(InputError, match=rf"{got}.*--output_dir"):
        check_target(tmp_path / target, True, "--output_dir", reads)


@pytest.mark.parametrize("content", [[], ["pruning_analysis.json", "more"], ["recovery_analysis.json"]])
def test_results_and_empty_folders_may_be_replaced(tmp_path, content):
    (tmp_path / "result").mkdir()
    for name in content:
        (tmp_path / "result" / name).write_text("{}")
    check_target(tmp_path / "result", True, "--output_dir", [str(tmp_path / "dense")])
    with pytest.raises(InputError, match="use another name or --overwrite"):
        check_target(tmp_path / "result", False, "--output_dir")


HOLD = """
import sys
from pathlib import Path
from hgsp.console.result_folders import reserved
with reserved(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_name_that_another_process_holds_is_refused_until_that_ends(tmp_path):
    target = tmp_path / "p20"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another run is writing"), new_folder(target, overwrite=False):
            pytest.fail("the block must not run")
        with reserved(tmp_path / "p30"):
            pass
        other.kill()
    with new_folder(target, overwrite=False) as partial:
        (partial / "new").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["p20"]


def test_leftovers_stay_while_another_process_holds_the_name(tmp_path):
    leftover = tmp_path / ".p20-abcd1234.partial"
    leftover.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "p20"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        leftover.mkdir()  # removed by the other, as it began
        remove_leftovers(tmp_path / "p20")
        assert leftover.exists()
        other.kill()
    remove_leftovers(tmp_path / "p20")
    assert not leftover.exists()


def test_a_result_that_was_moved_aside_is_back_before_names_are_checked(tmp_path):
    aside = tmp_path / ".p20-abcd1234.replaced"
    with_old(tmp_path).rename(aside)
    with pytest.raises(InputError, match="use another name or --overwrite"):
        check_target(tmp_path / "p20", False, "--output_name")
    check_target(tmp_path / "p20", True, "--output_name")


def test_a_name_can_be_held_twice_by_one_run(tmp_path):
    with reserved(tmp_path / "p20", tmp_path / "p30"), reserved(tmp_path / "p20"):
        pass
    with reserved(tmp_path / "p20"):
        assert (tmp_path / ".p20.lock").exists()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_removed_or_put_back(tmp_path):
    for name in (".p20-abc_1.partial", ".p20.training-0f.removed", ".p20-abc_1.replaced", ".p200-x.partial", ".p20-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with reserved(tmp_path / "p20"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"p20", ".p200-x.partial", ".p20-x"}
    assert (tmp_path / "p20" / "file").read_text() == ".p20-abc_1.replaced"


def test_an_old_result_beside_its_successor_is_removed(tmp_path):
    (tmp_path / ".p20-abc.replaced").mkdir()
    (tmp_path / "p20").mkdir()
    with reserved(tmp_path / "p20"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["p20"]


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "p20").symlink_to("elsewhere")
    with pytest.raises(InputError, match="symbolic link to elsewhere"), new_folder(tmp_path / "p20", overwrite=True):
        pytest.fail("the block must not run")
