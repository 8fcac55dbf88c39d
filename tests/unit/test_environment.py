"""The environment of a run: described the same way for every report, and files that are replaced whole."""

import errno
import json
import math
import os
import re
import subprocess
import sys

import pytest

import hgsp
from conftest import REPOSITORY
from hgsp import environment
from hgsp.environment import (
    describe_environment,
    in_gib,
    install_command,
    launched_processes,
    local_rank,
    lock_of,
    peak_memory_bytes,
    process_rank,
    replacing,
    write_atomically,
    write_json,
)


def test_versions_hardware_and_settings_are_named():
    described = describe_environment("cpu", dtype="float32", seed=7)
    assert described["hgsp"] == hgsp.__version__
    assert described["torch"] == __import__("torch").__version__
    assert described["device_name"] not in ("", None)
    assert (described["num_processes"], described["dtype"], described["seed"]) == (1, "float32", 7)


def test_a_missing_package_has_no_version(monkeypatch):
    monkeypatch.setattr(environment, "PACKAGES", ("no-such-package",))
    assert describe_environment("cpu")["no-such-package"] is None


def test_ranks_are_those_of_the_launcher(monkeypatch):
    assert (launched_processes(), process_rank(), local_rank()) == (1, 0, 0)
    for name, value in (("WORLD_SIZE", "16"), ("RANK", "9"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert (launched_processes(), process_rank(), local_rank()) == (16, 9, 1)


def test_the_launcher_s_variables_are_read_in_one_place():
    readers = [
        str(path.relative_to(REPOSITORY))
        for path in (*(REPOSITORY / "hgsp").rglob("*.py"), *REPOSITORY.glob("*.py"))
        if re.search(r"[\"'](WORLD_SIZE|RANK|LOCAL_RANK)[\"']", path.read_text())
    ]
    assert readers == ["hgsp/environment.py"]


def test_peak_memory_covers_what_the_process_holds():
    held = bytearray(32 * 2**20)
    assert peak_memory_bytes("cpu") > len(held)


def test_peak_memory_is_unknown_where_the_system_has_no_resource_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_bytes("cpu") is None
    assert in_gib(None) == "unknown on this system"
    assert in_gib(3 * 2**29) == "1.50 GiB"


def test_importing_the_module_loads_no_torch():
    check = "import sys, hgsp.environment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, check=False).returncode == 0


def test_json_is_strict_and_a_refused_write_changes_nothing(tmp_path):
    path = tmp_path / "new" / "report.json"
    write_json({"value": 1.5}, path)
    assert json.loads(path.read_text()) == {"value": 1.5}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json({"value": math.nan}, path)
    assert json.loads(path.read_text()) == {"value": 1.5}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    write_atomically(path, "old")

    def fill_the_disk():
        with replacing(path) as partial:
            partial.write_text("new, in part")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fill_the_disk()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == mode


def test_permissions_follow_the_umask_whoever_writes(tmp_path):
    with replacing(tmp_path / "file") as partial:
        partial.write_text("text")
        partial.chmod(0o600)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~environment.umask()


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    for name, goal in (("link", "victim"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(goal)
        write_atomically(tmp_path / name, "text")
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_siblings_of_killed_writers_are_removed_and_those_of_living_ones_are_not(tmp_path):
    pytest.importorskip("fcntl")
    for name in (".0123abcd-a.json", ".4567abcd-a.json", ".0123abcd-b.json", ".0123-a.json"):
        (tmp_path / name).write_text("half")
    living = lock_of(tmp_path / ".4567abcd-a.json", wait=False)
    write_atomically(tmp_path / "a.json", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("a.json", ".4567abcd-a.json", ".0123abcd-b.json", ".0123-a.json")
    }
    os.close(living)
    write_atomically(tmp_path / "a.json", "whole")
    assert not (tmp_path / ".4567abcd-a.json").exists()


def test_files_reach_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(environment, "sync", lambda path: seen.append((path.name, (tmp_path / "a").exists())))
    write_atomically(tmp_path / "a", "text")
    assert [exists for _, exists in seen] == [False, True]
    assert seen[1][0] == tmp_path.name


@pytest.mark.parametrize("has_fallocate", [True, False])
def test_space_is_reserved_or_missed_at_once(tmp_path, monkeypatch, has_fallocate):
    if not has_fallocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    (tmp_path / "file").write_bytes(b"kept")
    environment.reserve_space(tmp_path / "file", 5000)
    assert (tmp_path / "file").read_bytes() == b"kept" + bytes(4996)
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(OSError, match=r"No space left.*other") as refusal:
        environment.reserve_space(tmp_path / "other", 5000)
    assert refusal.value.errno == errno.ENOSPC


def test_json_has_each_list_of_numbers_on_one_line_and_stays_equal(tmp_path):
    content = {
        "kept": [list(range(100)), [], [1.5, -2e-9, None, True]],
        "texts": ["[\n  1,\n  2\n]", "a [ 1, 2 ]", "[", "]"],
        "layers": [{"index": 0, "groups": [0, 3]}],
    }
    write_json(content, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert text.count("\n") == 19
    assert '      "groups": [0, 3]\n' in text


def test_a_clone_is_installed_with_its_extra():
    assert install_command("eval") == "pip install -e '.[eval]' in the clone of hgsp"
    assert install_command("finetune", "wandb") == "pip install wandb -e '.[finetune]' in the clone of hgsp"


def test_beside_a_wheel_the_packages_of_the_extra_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(hgsp, "__file__", str(tmp_path / "hgsp" / "__init__.py"))
    command = install_command("finetune", "wandb")
    assert command.startswith("pip install wandb 'peft>=")
    assert "'matplotlib>=" in command
    assert "hgsp" not in command


def test_no_message_promises_a_release_of_hgsp():
    modules = [*(REPOSITORY / "hgsp").rglob("*.py"), *(REPOSITORY / "benchmarks").rglob("*.py")]
    assert [path for path in modules if re.search(r"pip install '?hgsp", path.read_text(encoding="utf-8"))] == []
