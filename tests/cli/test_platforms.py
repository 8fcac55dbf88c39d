"""Machines unlike Linux: no Unix modules, no UTF-8 by default, and jobs that a batch system interrupts."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from conftest import REPOSITORY
from hgsp.cli.main import COMMANDS

#: What Windows lacks: these modules, and UTF-8 as the encoding of files that name none. Commands that compute import
#: psutil, whose part for Linux alone needs ``resource``: it is imported before.
AS_ON_WINDOWS = """
import json, sys, warnings
if "--help" not in sys.argv[1]:
    import psutil
for name in ("resource", "fcntl"):
    sys.modules[name] = None
warnings.simplefilter("ignore", EncodingWarning)
warnings.filterwarnings("error", category=EncodingWarning, module="hgsp")
from hgsp.cli.main import main
for command in json.loads(sys.argv[1]):
    if main(command):
        sys.exit(f"{command[0]} failed")
"""
QUICK = shlex.split(
    "--pruning_ratio 0.2 --temperature 0 --dtype float32 --device cpu --nsamples 8 --seq_len 32 --eval_tasks builtin "
    "--eval_seq_len 64 --eval_max_windows 1 --reconstruct lstsq --reconstruct_nsamples 8 --search 4 --search_nsamples 4"
)
SLURM = REPOSITORY / "scripts" / "slurm_requeue.sh"


@pytest.fixture
def masked(tmp_path):
    """``masked(*commands)`` runs ``hgsp`` in one process as on Windows, with an ASCII locale and piped output."""

    def run(*commands):
        lines = json.dumps([[str(part) for part in command] for command in commands])
        own = {"PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
        return subprocess.run(
            [sys.executable, "-X", "warn_default_encoding", "-c", AS_ON_WINDOWS, lines],
            cwd=tmp_path,
            env={**os.environ, **own, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_starts_without_unix_modules(masked, command):
    done = masked([command, "--help"])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr  # filelock may say that it falls back to lock files
    assert done.stdout.startswith("usage: ")


def test_pruning_recovery_evaluation_and_export_need_no_unix_module(masked, saved, make, text_file, tmp_path):
    dense = saved(make("llama-8q4kv"))
    rows = tmp_path / "rows.jsonl"
    content = [
        json.dumps({"instruction": f"Sag {n}.", "output": f"Für {n}: 好"}, ensure_ascii=False) for n in range(24)
    ]
    rows.write_text("\n".join(content), encoding="utf-8")
    measure = shlex.split("--device cpu --eval_tasks builtin --eval_seq_len 64 --eval_max_windows 1")
    training = shlex.split("--max_steps 1 --batch_size 4 --micro_batch_size 4 --cutoff_len 64")
    done = masked(
        ["prune", *QUICK, "--base_model", dense, "--dataset", text_file, "--output_name", "X/p"],
        ["finetune", *training, *measure, "--pruned_model", "results/X/p", "--output_dir", "r", "--data_path", rows],
        ["evaluate", "--model_path", "r", "--tasks", "builtin", "--seq_len", "64", "--max_windows", "1"],
        ["export", "results/X/p", "--to", "decilm", "--output", "served"],
        ["summarize", "results/X"],
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    report = json.loads((tmp_path / "results/X/p/pruning_analysis.json").read_text(encoding="utf-8"))
    assert report["peak_memory_bytes"] is None


FAKE_JOB = """\
import signal, sys, time
open("started", "a").write("x")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(len(open("started").read()) == 1)))
if len(open("started").read()) == 1:
    time.sleep(60)
"""


@pytest.fixture
def slurm(tmp_path):
    """``slurm(*command)`` starts the job script with a ``scontrol`` that notes its arguments."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n')
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def start(*command, **environment):
        variables = {**os.environ, "PATH": path, "SLURM_JOB_ID": "7", **environment}
        with (tmp_path / "job.log").open("wb") as log:
            return subprocess.Popen(["bash", SLURM, *command], cwd=tmp_path, env=variables, stdout=log)

    return start


def test_the_job_script_is_valid_bash():
    assert subprocess.run(["bash", "-n", SLURM], check=False).returncode == 0


def test_a_job_near_its_limit_ends_its_command_and_is_queued_again(slurm, tmp_path):
    (tmp_path / "job.py").write_text(FAKE_JOB)
    job = slurm(sys.executable, "job.py")
    end = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.3)  # its handler is set after the file is written
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
    assert slurm(sys.executable, "job.py").wait(60) == 0
    assert (tmp_path / "started").read_text() == "xx"
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"


def test_a_failed_command_is_not_queued_again(slurm, tmp_path):
    assert slurm("sh", "-c", "exit 2").wait(60) == 2
    assert not (tmp_path / "scontrol.log").exists()


@pytest.mark.parametrize("flag", [["--output_dir", "out"], ["--output_dir=out"], ["--output-dir", "out/"]])
def test_an_interrupted_recovery_is_resumed(slurm, tmp_path, flag):
    command = ("sh", "-c", 'echo "$@"', "finetune", *flag)
    assert slurm(*command).wait(60) == 0
    assert (tmp_path / "job.log").read_text().split() == flag
    (tmp_path / "out.training").mkdir()
    assert slurm(*command).wait(60) == 0
    assert (tmp_path / "job.log").read_text().split() == [*flag, "--resume"]
