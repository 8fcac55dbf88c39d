"""``run_global_pruning.py --finetune``: both recipes in one command."""

import json
import shlex

import pytest

import finetune_lora
import run_global_pruning
from hgsp.models.checkpoint import load_pruned

PRUNE = shlex.split(
    "--temperature 0 --dtype float32 --device cpu --nsamples 4 --seq_len 32 --eval_tasks builtin --eval_seq_len 64 "
    "--eval_max_windows 1 --finetune --finetune_epochs 1 --finetune_batch_size 8 --finetune_lr 1e-2 --output_name X/p"
)


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"instruction": f"Say {n}.", "output": f"It is {n}."}) for n in range(24)))
    return path


@pytest.fixture
def prune(saved, make, text_file, rows, tmp_path):
    """``prune(*flags)`` prunes a tiny model and recovers it; later flags win."""
    base = saved(make("llama-8q4kv"))

    def run(*flags):
        paths = ("--base_model", base, "--dataset", text_file, "--finetune_data_path", rows)
        return run_global_pruning.main([*PRUNE, *map(str, (*paths, "--results_dir", tmp_path / "results", *flags))])

    return run


def test_every_ratio_is_pruned_and_recovered_into_its_own_folder(prune, tmp_path):
    assert prune("--pruning_ratio", "0.1", "0.3") == 0
    results = tmp_path / "results" / "X"
    assert {path.name for path in results.iterdir()} == {"p_10", "p_30", "p_10_finetuned", "p_30_finetuned"}
    for percent in (10, 30):
        pruned, recovered = results / f"p_{percent}", results / f"p_{percent}_finetuned"
        assert load_pruned(pruned).num_parameters() == load_pruned(recovered).num_parameters()
        for folder in (pruned, recovered):
            report = json.loads((folder / "pruning_analysis.json").read_text())
            assert report["asked_ratio"] == percent / 100
            assert report["recovery"]["steps"] == 3
            after = report["recovery"]["evaluation"]["before"]["builtin"]["ppl"]
            assert after == pytest.approx(report["evaluation"]["after"]["builtin"]["ppl"], rel=1e-6)
            dense, found = report["evaluation"]["before"], report["recovery"]["evaluation"]["after"]
            change = found["builtin"]["ppl"] / dense["builtin"]["ppl"]  # to the dense model, not to the pruned one
            assert f"perplexity x{change:.2f} on builtin" in report["recovery"]["verdict"]["reason"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--finetune_data_path", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["--finetune_batch_size", "6"], "the nearest are 4 or 8"),
        (["--finetune_lr", "inf"], "--finetune_lr"),
        (["--eval_seq_len", "513"], "--eval_seq_len of at most 512"),
    ],
)
def test_what_recovery_cannot_do_is_refused_before_pruning(flags, message, prune, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hgsp.pipeline.prune.load_for_pruning", None)
    assert prune("--pruning_ratio", "0.2", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_recovered_model_that_is_there_already_is_refused_before_pruning(prune, tmp_path, capsys):
    (tmp_path / "results" / "X" / "p_finetuned").mkdir(parents=True)
    assert prune("--pruning_ratio", "0.2") == 2
    assert "p_finetuned exists" in capsys.readouterr().err


def test_several_processes_are_told_to_recover_afterwards(prune, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert prune("--pruning_ratio", "0.2") == 2
    assert "accelerate launch" in capsys.readouterr().err


FAILURES = {
    "interrupt": (KeyboardInterrupt(), "resume with --resume"),
    "out of memory": (MemoryError(), "continue with --resume --use_gradient_checkpointing"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_recovery_that_fails_says_what_is_there_and_how_to_go_on(prune, tmp_path, monkeypatch, capsys, what):
    error, advice = FAILURES[what]

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("hgsp.recovery.training.train", fail)
        assert prune("--pruning_ratio", "0.2") == 1
    message = capsys.readouterr().err
    assert advice in message
    assert "no partial output" not in message
    pruned = tmp_path / "results" / "X" / "p"
    assert f"{pruned} is complete" in message
    command = message.rpartition("its recovery by itself: ")[2].splitlines()[0]
    arguments = shlex.split(command)
    assert arguments[:2] == ["hgsp", "finetune"]
    assert finetune_lora.main([*arguments[2:], "--overwrite"]) == 0
    assert (tmp_path / "results" / "X" / "p_finetuned" / "config.json").is_file()
