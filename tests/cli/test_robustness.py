"""Finished results survive everything that happens after them; runs of one name keep out of each other's way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import make_tiny
from hgsp.cli import prune as prune_command
from hgsp.console.result_folders import reserved
from pruning import analysis_of

SCRIPT = Path(__file__).parent.parent.parent / "run_global_pruning.py"
QUICK = ("--importance_method", "magnitude", "--temperature", "0", "--skip_evaluation", "--dtype", "float32")


def command_for(model, results, name, *flags):
    places = ("--base_model", model, "--results_dir", results, "--output_name", name, "--pruning_ratio", "0.2")
    sizes = ("--min_mlp_width", "8", "--device", "cpu")
    script = [sys.executable, str(SCRIPT)]
    return [*script, *map(str, (*places, *sizes, *QUICK, *flags))]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_tiny("llama-8q4kv").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_closed_pipe_ends_quietly_and_loses_nothing(model, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            command_for(model, tmp_path, "out"), stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert analysis_of(tmp_path / "out")["reached_ratio"] > 0
    assert (tmp_path / "out" / "logs" / "training.log").is_file()


def test_brackets_in_a_name_are_no_markup(model, tmp_path):
    assert prune_command.main(command_for(model, tmp_path, "[/bold] [red]")[2:]) == 0
    assert analysis_of(tmp_path / "[/bold] [red]")["reached_ratio"] > 0


def test_what_fails_after_a_result_was_published_leaves_it_whole(model, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug in a table")

    monkeypatch.setattr("hgsp.pipeline.closing.show", broken)
    with pytest.raises(RuntimeError, match="a bug in a table"):
        prune_command.main(command_for(model, tmp_path, "out")[2:])
    assert analysis_of(tmp_path / "out")["reached_ratio"] > 0


def test_a_second_run_of_the_same_name_is_refused(model, tmp_path, capsys):
    tmp_path.joinpath("held").mkdir()
    with reserved(tmp_path / "held" / "out"):
        done = subprocess.run(command_for(model, tmp_path / "held", "out"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "another run is writing" in done.stderr
    assert not list((tmp_path / "held").iterdir())


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_closed_terminal_leaves_nothing_half_written(model, tmp_path):
    with subprocess.Popen(
        command_for(model, tmp_path, "out"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".out*")) and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        run.send_signal(signal.SIGHUP)
        _, errors = run.communicate()
    assert (run.returncode, "interrupted" in errors) in ((1, True), (0, False))
    assert [path.name for path in tmp_path.iterdir()] == ([] if run.returncode else ["out"])
