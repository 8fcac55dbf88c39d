"""Recovery across processes: two processes learn the same as one, and a kill halfway loses nothing."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import finetune_lora
from conftest import REPOSITORY, make_tiny
from hgsp.models.checkpoint import save_pruned
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan

FLAGS = ["--max_steps", "6", "--batch_size", "8", "--micro_batch_size", "2", "--val_size", "6", "--cutoff_len", "96"]
FLAGS += ["--learning_rate", "1e-2", "--device", "cpu", "--skip_evaluation", "--eval_steps", "2"]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture
def command(tmp_path, tokenizer):
    """``command(output)`` is the recipe's command line for a pruned tiny model, without the interpreter."""
    model = make_tiny("llama-9q3kv-tied")
    (tmp_path / "pruned").mkdir()
    save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, tmp_path / "pruned")
    rows = [{"instruction": f"Count to {n % 7}.", "output": " ".join(map(str, range(n % 7 + 1)))} for n in range(60)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def line(output, *flags):
        paths = ("--pruned_model", tmp_path / "pruned", "--data_path", tmp_path / "rows.json", "--output_dir", output)
        return [str(part) for part in (REPOSITORY / "finetune_lora.py", *paths, *FLAGS, *flags)]

    return line


def start(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output[-3000:]
    return output


def curve_of(folder):
    with (folder / "loss_curve.csv").open() as rows:
        return [(row["step"], row["loss"], row["eval_loss"]) for row in csv.DictReader(rows)]


def adapter_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_two_processes_learn_what_one_learns(command, tmp_path):
    """Same global batch, same order: the same losses and weights to float32 rounding."""
    assert finetune_lora.main(command(tmp_path / "one")[1:]) == 0
    output = finish(start(*LAUNCHER, *command(tmp_path / "two")))
    one, two = curve_of(tmp_path / "one"), curve_of(tmp_path / "two")
    losses = [[float(row[1]) for row in curve if row[1]] for curve in (one, two)]
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, expected in adapter_of(tmp_path / "one").items():
        torch.testing.assert_close(adapter_of(tmp_path / "two")[name], expected, rtol=1e-2, atol=1e-3)
    assert output.count("result:") == 1  # the first process alone speaks and writes
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["one", "pruned", "two"]


def test_a_kill_in_the_middle_and_a_resume_end_where_an_uninterrupted_run_ends(command, tmp_path):
    """SIGKILL arrives as soon as a training state exists."""
    assert finetune_lora.main(command(tmp_path / "whole")[1:]) == 0
    process = start(*command(tmp_path / "killed"))
    states = tmp_path / "killed.training" / "states"
    while process.poll() is None and not list(states.glob("checkpoint-*/trainer_state.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"
    assert not (tmp_path / "killed").exists()
    finish(start(*command(tmp_path / "killed", "--resume")))
    assert curve_of(tmp_path / "killed") == curve_of(tmp_path / "whole")
    expected = adapter_of(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in adapter_of(tmp_path / "killed").items())
    assert not states.exists()
