"""A sample of the suites that `make test-hard` runs whole, in a process that has computed nothing and can fork."""

import json
import os
import subprocess
import sys

import pytest

from conftest import REPOSITORY


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_sample_of_disturbed_runs(tmp_path):
    script, output = REPOSITORY / "benchmarks" / "reliability.py", tmp_path / "counts.json"
    few = ["--stages", "overwrite", "score", "--writes", "9", "--moments", "3", "--signals", "3", "--minutes", "0.25"]
    command = [sys.executable, script, *few, "--jobs", "1", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert sum(row["experiments"] for row in rows) > 4
    assert sum(row["problems"] for row in rows) == 0
