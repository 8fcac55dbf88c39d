"""A log that cannot be written does not end a run."""

import logging

from hgsp.console.log_file import LogFile

LOG = logging.getLogger("hgsp")


def test_a_full_disk_ends_the_log_with_one_line(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with LogFile(tmp_path / "a.log") as log:
        LOG.info("first")
        monkeypatch.setattr(log._to_file.stream, "flush", full, raising=False)
        LOG.info("second")
        LOG.info("third")
        log.copy_to(tmp_path / "copy.log")
        monkeypatch.undo()
    assert capsys.readouterr().err.splitlines() == [
        *("first", "the log ends here: [Errno 28] No space left on device", "second", "third")
    ]
    assert "first" in (tmp_path / "copy.log").read_text()


def test_lines_after_a_copy_are_appended_in_place(tmp_path):
    """The copy is in a finished result by then, which must not get another file if the run is killed."""
    with LogFile(tmp_path / "a.log") as log:
        LOG.info("first")
        log.copy_to(tmp_path / "copy.log")
        copy = (tmp_path / "copy.log").stat()
        LOG.info("second")
        log.append_to(tmp_path / "copy.log")
    assert (tmp_path / "copy.log").read_bytes() == (tmp_path / "a.log").read_bytes()
    assert (tmp_path / "copy.log").stat().st_ino == copy.st_ino


def test_a_closed_terminal_is_no_reason_to_end(tmp_path, monkeypatch):
    class Closed:
        def write(self, _text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Closed())
    with LogFile(tmp_path / "a.log"):
        LOG.info("first")
    assert "first" in (tmp_path / "a.log").read_text()
