"""Two processes that share the calibration sequences give the table that one gives."""

import csv
import json
import os
import subprocess
import sys

import run_global_pruning
from conftest import REPOSITORY, make_tiny

NAMES = ["dense", "one_10", "one_30", "two_10", "two_30"]
FLAGS = ["--pruning_ratio", "0.1", "0.3", "--temperature", "1", "--dataset", "builtin", "--nsamples", "5"]
FLAGS += ["--seq_len", "32"]
FLAGS += ["--device", "cpu", "--dtype", "float32", "--skip_evaluation", "--min_mlp_width", "8", "--batch_size", "2"]


def table_of(folder):
    with (folder / "global_group_table.csv").open() as rows:
        return list(csv.DictReader(rows))


def test_two_processes_equal_one(saved, tmp_path):
    """Five sequences do not divide by two; importances, the prior and the kept groups are those of one process."""
    base = saved(make_tiny("llama-8q4kv"))
    flags = [*FLAGS, "--base_model", str(base), "--results_dir", str(tmp_path), "--output_name"]
    assert run_global_pruning.main([*flags, "one"]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(REPOSITORY / "run_global_pruning.py"), *flags, "two"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = table_of(tmp_path / "one_30"), table_of(tmp_path / "two_30")
    assert len(one) == len(two) > 0
    for expected, got in zip(one, two, strict=True):
        assert [expected[key] for key in ("layer", "kind", "group", "cost", "kept")] == [
            got[key] for key in ("layer", "kind", "group", "cost", "kept")
        ]
        for column in ("importance", "prior", "score"):  # float32 sums in another order
            assert abs(float(got[column]) - float(expected[column])) <= 1e-4 * abs(float(expected[column]))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == NAMES
    reports = [json.loads((tmp_path / name / "pruning_analysis.json").read_text()) for name in ("one_10", "two_10")]
    assert [report["environment"]["num_processes"] for report in reports] == [1, 2]
