"""Refusals of the evaluation recipe, and the ways to start it."""

import copy
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch

from conftest import REPOSITORY, make_tiny
from evaluating import FAST, no_weights, statuses
from hgsp.cli import main as cli


def test_an_unknown_task_is_refused_before_anything_is_loaded(evaluate, pruned, monkeypatch, capsys):
    no_weights(monkeypatch)
    assert evaluate(pruned, "--tasks", "wikitext,helaswag") == 2
    assert "unknown task 'helaswag'; did you mean hellaswag" in capsys.readouterr().err
    assert not (pruned / "evaluation").exists()


def test_one_missing_dataset_alone_is_refused_before_anything_is_loaded(evaluate, pruned, monkeypatch, capsys):
    def unreachable(*arguments, **named):
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    no_weights(monkeypatch)
    for task, file in (("ptb", "ptb/ptb.test.txt"), ("boolq", "tasks/boolq_dev.jsonl")):
        assert evaluate(pruned, "--tasks", task) == 2
        assert file in capsys.readouterr().err
    assert not (pruned / "evaluation").exists()


def test_a_mistyped_data_folder_is_refused_whatever_the_tasks_are(evaluate, pruned, tmp_path, monkeypatch, capsys):
    no_weights(monkeypatch)
    for tasks in ("wikitext,c4", "lambada,efficiency"):
        assert evaluate(pruned, "--tasks", tasks, "--data_dir", tmp_path / "dta") == 2
        assert "--data_dir to be a folder" in capsys.readouterr().err
    assert not (pruned / "evaluation").exists()


def test_a_folder_without_weights_is_refused_early(evaluate, dense, pruned, tmp_path, monkeypatch, capsys):
    no_weights(monkeypatch)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(dense / "config.json", empty)
    for flags in (("--tasks", "wikitext"), ("--base_model", dense, "--compare")):
        assert evaluate(empty, *flags) == 2
        assert "got none; check that pruning finished" in capsys.readouterr().err
    assert evaluate(pruned, "--base_model", empty, "--compare") == 2
    assert evaluate(tmp_path / "nowhere" / "x") == 2
    assert "does not exist" in capsys.readouterr().err
    assert evaluate(dense, "--recovered_model", tmp_path / "gone.bin") == 2
    assert not (empty / "evaluation").exists()


def test_a_folder_that_lacks_some_weights_is_refused(evaluate, dense, capsys):
    from safetensors.torch import load_file, save_file

    path = dense / "model.safetensors"
    state = load_file(path)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, path, metadata={"format": "pt"})
    assert evaluate(dense, "--tasks", "wikitext") == 2
    assert "up_proj" in capsys.readouterr().err
    assert not (dense / "evaluation").exists()


def test_a_model_too_large_for_the_memory_says_what_to_try_here(evaluate, pruned, monkeypatch, capsys):
    """The hints fit evaluation, not scoring, and finished measurements stay."""
    assert evaluate(pruned, "--tasks", "wikitext") == 0

    def full(*arguments, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr("hgsp.evaluation.runner.load_model", full)
    assert evaluate(pruned, "--tasks", "wikitext,c4") == 1
    error = capsys.readouterr().err
    assert "out of memory" in error
    assert "kept" in error
    assert "nsamples" not in error
    assert statuses(pruned / "evaluation") == {("pruned", "wikitext2"): "done"}


def test_the_hubs_retries_are_not_our_output(evaluate, pruned):
    """Offline, the hub warns about each of many attempts; our error says the same once."""
    assert evaluate(pruned, "--tasks", "wikitext") == 0
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)


def test_a_tokenizer_of_another_model_is_refused_before_anything_is_loaded(
    evaluate, pruned, saved, monkeypatch, capsys
):
    no_weights(monkeypatch)
    small = saved(make_tiny("llama-8q4kv", vocab_size=200, bos_token_id=1, eos_token_id=2), "small")
    for model, flags in (
        (small, ("--tasks", "wikitext")),
        (small, ("--tasks", "lambada")),
        (pruned, ("--tasks", "wikitext", "--recovered_model", small)),
    ):
        assert evaluate(model, *flags) == 2
        assert "at most 200 tokens" in capsys.readouterr().err
        assert not (model / "evaluation").exists()


def test_a_window_longer_than_a_model_is_refused_before_anything_is_loaded(
    evaluate, pruned, saved, monkeypatch, capsys
):
    no_weights(monkeypatch)
    short = saved(make_tiny("llama-8q4kv", max_position_embeddings=64), "short")
    for model, flags, limit in (
        (pruned, ("--seq_len", "64", "4096"), 512),
        (pruned / "pruned_model.bin", ("--seq_len", "513"), 512),
        (pruned, ("--seq_len", "128", "--base_model", short, "--compare"), 64),
        (pruned, ("--seq_len", "128", "--recovered_model", short), 64),
    ):
        assert evaluate(model, "--tasks", "wikitext", *flags) == 2
        assert f"2 to {limit} tokens" in capsys.readouterr().err
    assert not (pruned / "evaluation").exists()


def test_bos_of_a_tokenizer_without_one_is_refused_before_anything_is_loaded(
    evaluate, pruned, tokenizer, monkeypatch, capsys
):
    no_weights(monkeypatch)
    without = copy.deepcopy(tokenizer)
    without.bos_token = None
    without.save_pretrained(pruned)
    assert evaluate(pruned, "--tasks", "wikitext,lambada", "--add_bos") == 2
    assert "BOS" in capsys.readouterr().err


def test_results_of_another_model_are_not_written_over(evaluate, pruned, dense, tmp_path, capsys):
    assert evaluate(pruned, "--tasks", "wikitext", "--output", tmp_path / "out") == 0
    before = (tmp_path / "out/results.json").read_bytes()
    assert evaluate(dense, "--tasks", "wikitext", "--output", tmp_path / "out") == 2
    assert "another --output" in capsys.readouterr().err
    assert (tmp_path / "out/results.json").read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused_early(evaluate, pruned, tmp_path, monkeypatch):
    no_weights(monkeypatch)
    (tmp_path / "file").write_text("")
    assert evaluate(pruned, "--output", tmp_path / "file" / "out") == 2


def test_perplexity_and_efficiency_need_no_harness(evaluate, pruned, monkeypatch, capsys):
    for package in ("lm_eval", "datasets", "accelerate"):
        monkeypatch.setitem(sys.modules, package, None)
    assert evaluate(pruned, "--tasks", "wikitext,efficiency") == 0
    assert evaluate(pruned, "--tasks", "lambada") == 2
    assert "pip install -e '.[eval]'" in capsys.readouterr().err


def test_hgsp_evaluate_is_the_same_command(pruned, data):
    settings = [part for pair in FAST.items() for part in pair]
    arguments = ["evaluate", "--model_path", str(pruned), "--data_dir", str(data), "--tasks", "wikitext", *settings]
    assert cli.main(arguments) == 0
    assert statuses(pruned / "evaluation") == {("pruned", "wikitext2"): "done"}


@pytest.mark.parametrize("on_path", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_a_folder_of_the_user_named_evaluation_is_not_in_the_way(pruned, tmp_path, on_path):
    """In the working directory, which comes first on the path, and on PYTHONPATH before ours."""
    own = tmp_path / "project"
    (own / "evaluation").mkdir(parents=True)
    (own / "evaluation" / "__init__.py").write_text("raise ImportError('the package of the user')")
    call = "import sys; from hgsp.cli.main import main; sys.exit(main(sys.argv[1:]))"
    flags = [part for pair in FAST.items() for part in pair]
    done = subprocess.run(
        [sys.executable, "-c", call, "evaluate", "--model_path", str(pruned), "--tasks", "builtin", *flags],
        cwd=tmp_path if on_path else own,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(own)] * on_path + [str(REPOSITORY)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert statuses(pruned / "evaluation") == {("pruned", "builtin"): "done"}


@pytest.mark.parametrize("inside", [True, False])
def test_the_script_runs_from_anywhere(pruned, data, tmp_path, inside):
    """Python puts the script's folder on its path, not the repository, and with ``-S`` it finds no installed hgsp.
    A wrong task name is refused before any other package is imported."""
    script = "evaluation/run_evaluation.py" if inside else str(REPOSITORY / "evaluation/run_evaluation.py")
    done = subprocess.run(
        [sys.executable, "-ES", script, "--model_path", str(pruned), "--data_dir", str(data), "--tasks", "wikitxt"],
        cwd=REPOSITORY if inside else tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean wikitext" in done.stderr
