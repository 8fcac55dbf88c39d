"""Bars, lines and timings of long steps."""

import logging
import re

import pytest

from hgsp.console.log_file import LogFile
from hgsp.console.progress import Timings, log_finished, terminal


def test_finished_stages_are_announced_with_their_own_seconds_and_added_up():
    announced = []
    timings = Timings({"score": 100.0}, lambda name, seconds: announced.append((name, seconds)))
    with timings.stage("score"):
        pass
    ((name, seconds),) = announced
    assert (name, seconds < 1) == ("score", True)
    assert timings["score"] == 100.0 + seconds


def test_a_stage_that_fails_is_timed_but_not_announced():
    timings = Timings(finished=lambda *_: pytest.fail("announced"))
    with pytest.raises(ValueError, match="broken"), timings.stage("score"):
        raise ValueError("broken")
    assert "score" in timings


def test_only_stages_that_took_a_while_are_logged(caplog):
    with caplog.at_level(logging.INFO, "hgsp"):
        log_finished("cut", 0.01)
        log_finished("score", 12.34)
    assert [record.getMessage() for record in caplog.records] == ["done: score, 12.3 s"]


def test_a_bar_follows_its_label_and_stays_with_its_seconds(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    latest = {"loss": 0.0}
    for loss in terminal([3.5, 2.25], lambda: f"recovery, loss {latest['loss']:.3f}", 2):
        latest["loss"] = loss
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    last = re.split(r"[\r\n]+", shown.strip())[-1]
    assert last.startswith("recovery, loss 2.250")
    assert "2/2" in last
    assert last.rstrip().endswith("0:00:00")
    assert len(last) <= 80


def test_lines_of_the_log_go_to_the_standard_error_of_the_moment(tmp_path, monkeypatch, capsys):
    """A progress bar replaces it while it is shown."""
    with LogFile(tmp_path / "log"):
        lines = []
        monkeypatch.setattr("sys.stderr", type("Bar", (), {"write": lines.append, "flush": lambda self: None})())
        logging.getLogger("hgsp").info("step 1")
    assert "".join(lines) == "step 1\n"
