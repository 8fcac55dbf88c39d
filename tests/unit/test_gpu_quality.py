"""Benchmarks of quality for machines with a GPU, on a CPU and tiny models."""

import json
import runpy
import sys

import pytest

from conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture
def run(monkeypatch):
    """``run(script, *arguments)`` runs a script of the benchmarks in this process."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def start(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")

    return start


def test_a_layer_is_timed_and_its_memory_has_a_bound(run, tmp_path, capsys):
    output = tmp_path / "new" / "gpu_quality.json"
    run("reconstruction.py", "--tiny", "--nsamples", 4, "--seq_len", 64, "--output", output)
    found = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert {"score_s", "solve_s", "epoch_of_blocks_s"} <= set(found["one_layer"])
    assert found["one_layer"]["reconstruct_bound_bytes"] > 20 * 1024**2  # the linear system of the MLP
    assert found["model"] == "a tiny shape"
    assert "whole_model" not in found


def test_without_a_gpu_timing_on_one_is_refused_at_once(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("reconstruction.py", "--device", "cuda")
    assert stopped.value.code == 2
    assert "no GPU was found" in capsys.readouterr().err


@pytest.mark.thorough
def test_sizes_are_pruned_measured_and_shown_as_rows(run, make, saved, text_file, tmp_path, capfd):
    """A second run takes what the first one left."""
    folder, work = saved(make("llama-8q4kv")), tmp_path / "work"
    arguments = ["--base_model", folder, "--calibrate", text_file, "--recipe", "balanced", "--seq_len", 16]
    arguments += ["--prune_flags", "nsamples=4", "reconstruct_nsamples=4", "--device", "cpu", "--work_dir", work]
    arguments += ["--tasks", text_file, "--eval_flags", "seq_len=32", "max_windows=2"]
    run("quality_8b.py", *arguments, "--ratios", 0.25, 0.5, "--output", tmp_path / "first.json")
    shown = capfd.readouterr()
    assert shown.err.count("python run_global_pruning.py") == 1
    rows = json.loads((tmp_path / "first.json").read_text())["rows"]
    assert [(row["way"], row["ratio"]) for row in rows] == [("dense", 0.0), ("balanced", 0.25), ("balanced", 0.5)]
    assert all("score" in row["seconds"] for row in rows[1:])
    run("quality_8b.py", *arguments, "--ratios", 0.25, 0.5, "--output", tmp_path / "again.json")
    assert "run_global_pruning" not in capfd.readouterr().err
    assert json.loads((tmp_path / "again.json").read_text())["rows"] == rows
