"""Processes of cells, and the files that they write to."""

import sys

from hgsp.study.processes import subprocess_starter


def test_a_log_grows_and_is_not_written_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "cell.log").symlink_to("victim")
    start = subprocess_starter([sys.executable, "-S", "-c", "print('line')"], tmp_path)
    for _ in range(2):
        assert start([], 1, tmp_path / "cell.log").wait() == 0
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "cell.log").read_text() == "line\n" * 2
