"""Recipes on a tokenizer with a ``[PAD]`` that was added for training and has no embedding."""

import copy
import json

import pytest

import finetune_lora
import run_global_pruning
from conftest import make_tiny
from hgsp.cli import main as cli

PRUNE = {
    "--dataset": "builtin",
    "--pruning_ratio": "0.2",
    "--nsamples": "4",
    "--seq_len": "32",
    "--device": "cpu",
    "--min_mlp_width": "8",
    "--eval_tasks": "builtin",
    "--eval_max_windows": "1",
    "--eval_seq_len": "64",
}
TRAIN = {
    "--max_steps": "1",
    "--batch_size": "2",
    "--micro_batch_size": "2",
    "--val_size": "2",
    "--cutoff_len": "64",
    "--device": "cpu",
}


def run(recipe, flags, **named):
    flags = flags | {f"--{name}": value for name, value in named.items()}
    return recipe([str(part) for pair in flags.items() for part in pair])


@pytest.fixture
def base(tmp_path, tokenizer):
    padded = copy.deepcopy(tokenizer)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    make_tiny("llama-8q4kv").save_pretrained(tmp_path / "base")
    padded.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_an_added_token_is_a_warning_in_every_recipe(base, tmp_path, evaluate, capsys):
    assert run(run_global_pruning.main, PRUNE, base_model=base, results_dir=tmp_path, output_name="out") == 0
    report = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())
    assert any("[PAD]" in warning for warning in report["warnings"])
    capsys.readouterr()
    assert evaluate(tmp_path / "out", "--tasks", "wikitext,piqa") == 0
    assert "[PAD]" in capsys.readouterr().err


def test_rows_of_different_lengths_are_padded_by_a_token_that_has_an_embedding(base, tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": "Count.", "input": "", "output": "one " * n} for n in range(1, 7)]))
    asked = TRAIN | {"--pruned_model": base, "--output_dir": tmp_path / "trained", "--eval_tasks": "builtin"}
    asked |= {"--eval_max_windows": 1, "--eval_seq_len": 64}
    assert run(finetune_lora.main, asked, data_path=rows) == 0


@pytest.mark.parametrize("recipe", ["prune", "score", "finetune"])
def test_a_text_that_holds_the_added_token_is_refused_before_weights_are_loaded(base, recipe, tmp_path, capsys):
    (base / "model.safetensors").write_bytes(b"")
    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {number} of [PAD] text\n" for number in range(200)))
    if recipe == "prune":
        code = run(run_global_pruning.main, PRUNE, base_model=base, dataset=text, results_dir=tmp_path, output_name="o")
    elif recipe == "score":
        flags = {"--nsamples": 4, "--seq_len": 32, "--device": "cpu"}
        code = run(lambda argv: cli.main(["score", *argv]), flags, base_model=base, dataset=text, output=tmp_path / "s")
    else:
        asked = TRAIN | {"--pruned_model": base, "--output_dir": tmp_path / "trained", "--eval_tasks": "builtin"}
        code = run(finetune_lora.main, asked, data_path=text)
    assert code == 2
    error = capsys.readouterr().err
    assert "'[PAD]', id 258" in error
    assert "text.txt" in error
