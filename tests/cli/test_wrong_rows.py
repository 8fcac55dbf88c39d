"""Rows and texts that cannot be read end every command that reads them in one line, before any work."""

import shlex

import pytest

import finetune_lora
import run_global_pruning
from evaluation import run_evaluation
from hgsp.cli import score

PRUNE = shlex.split("--dtype float32 --device cpu --nsamples 4 --seq_len 32 --eval_tasks builtin --eval_seq_len 64")
FINETUNE = shlex.split("--device cpu --cutoff_len 64 --batch_size 4 --micro_batch_size 4 --eval_tasks builtin")
#: Name -> content, and the words of the refusal.
FILES = {
    "rows.jsonl": (b'{"text": "a"}\n{"text": "\\ud83d"}\n', "rows.jsonl, line 2"),
    "ROWS.CSV": (b"text,id\na,1\nb\n", "ROWS.CSV, line 3"),
    "text": (b'{"text": "a"}\n', "rows in JSON"),
    "rows.zip": (b"PK\x03\x04", "a zip archive"),
}


@pytest.fixture
def commands(saved, make, tmp_path):
    """``commands[name](data)`` runs a command on a file of data."""
    dense, out = str(saved(make("llama-8q4kv"))), str(tmp_path / "results")
    prune = ["--base_model", dense, "--results_dir", out, "--output_name", "p"]
    tune = ["--pruned_model", dense, "--output_dir", out]
    ratio = ["--pruning_ratio", "0.2"]
    return {
        "prune": lambda data: run_global_pruning.main([*prune, *ratio, *PRUNE, "--dataset", data]),
        "prune, then evaluate": lambda data: run_global_pruning.main(
            [*prune, *ratio, *PRUNE, "--dataset", "builtin", "--eval_tasks", data]
        ),
        "prune and finetune": lambda data: run_global_pruning.main(
            [*prune, *ratio, *PRUNE, "--dataset", "builtin", "--finetune", "--finetune_data_path", data]
        ),
        "score": lambda data: score.main(["--base_model", dense, "--output", out, *PRUNE[:8], "--dataset", data]),
        "finetune": lambda data: finetune_lora.main([*tune, *FINETUNE, "--data_path", data]),
        "distil": lambda data: finetune_lora.main([*tune, *FINETUNE, "--distill_from", dense, "--data_path", data]),
        "evaluate": lambda data: run_evaluation.main(["--model_path", dense, "--tasks", data, "--output", out]),
    }


@pytest.mark.parametrize("name", FILES)
def test_every_command_refuses_rows_that_cannot_be_read(name, commands, tmp_path, capsys):
    content, words = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    for command, run in commands.items():
        assert run(str(path)) == 2, command
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: expected "), command
        assert words in line, command
        assert str(path) in line, command
    assert not list(tmp_path.glob("results/**/*.safetensors"))
