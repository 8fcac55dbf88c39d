"""The evaluation recipe as users call it: what it writes, says and refuses, no failure costing another's result."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

import evaluation.jobs
import evaluation.metrics.efficiency
from conftest import REPOSITORY, make_tiny
from evaluation import run_evaluation
from hgsp import cli
from hgsp.checkpoint import save_pruned
from hgsp.surgery import apply_plan
from plans import mixed_plan

FAST = {
    "--device": "cpu",
    "--seq_len": "64",
    "--limit": "2",
    "--prompt_len": "4",
    "--decode_len": "2",
    "--repeats": "1",
}


@pytest.fixture
def dense(saved, make):
    return saved(make("llama-8q4kv"), "dense")


@pytest.fixture
def pruned(tmp_path, make, tokenizer):
    """A pruned folder with its .bin, as the pruning recipe leaves it."""
    folder = tmp_path / "pruned"
    folder.mkdir()
    model = make("llama-8q4kv")
    save_pruned(apply_plan(model, mixed_plan(model)), tokenizer, folder)
    return folder


@pytest.fixture
def data(tmp_path):
    """A data folder with a little of everything that the tests evaluate."""
    folder = tmp_path / "data"
    rows = [{"goal": f"open door {n}", "sol1": "push it", "sol2": "eat it"} for n in range(4)]
    files = {
        "wikitext2/wiki.test.raw": "Robert is an English actor .\n" * 40,
        "c4/c4_sample_1000.jsonl": "".join(json.dumps({"text": f"Document {n} of many."}) + "\n" for n in range(30)),
        "lambada/lambada_test.jsonl": "".join(json.dumps({"text": f"She saw the {n} dog"}) + "\n" for n in range(4)),
        "tasks/piqa_valid.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "tasks/piqa_valid-labels.lst": "0\n0\n1\n0\n",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def evaluate(data):
    """``evaluate(model, *flags)`` runs the recipe and returns its exit code; later flags win."""

    def run(model, *flags):
        settings = [part for pair in FAST.items() for part in pair]
        return run_evaluation.main([str(f) for f in ("--model_path", model, "--data_dir", data, *settings, *flags)])

    return run


def stored(folder):
    return json.loads((folder / "results.json").read_text())


def statuses(folder):
    return {(item["role"], item["task"]): item["status"] for item in stored(folder)["results"]}


def no_weights(monkeypatch):
    """From now on loading a model is an error: what is refused must be refused before."""

    def load(*arguments, **named):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("evaluation.models.load_model", load)
    monkeypatch.setattr("evaluation.side_by_side.load_model", load)


def test_results_lie_under_the_models_folder_and_in_the_terminal(evaluate, pruned, dense, capsys):
    flags = ("--base_model", dense, "--compare", "--tasks", "wikitext,c4,lambada,piqa,efficiency")
    assert evaluate(pruned / "pruned_model.bin", *flags) == 0
    folder = pruned / "evaluation"
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.log", "results.json", "results.md"]
    content = stored(folder)
    assert {role for role, _ in statuses(folder)} == {"dense", "pruned"}
    assert {task for _, task in statuses(folder)} == {"wikitext2", "c4", "lambada", "piqa", "efficiency"}
    assert set(statuses(folder).values()) == {"done"}
    assert content["collapsed"] is False
    assert content["environment"]["lm-eval"]
    assert content["command"].startswith("run_evaluation.py --model_path")
    ratios = {(item["task"], item["metric"]): item["ratio"] for item in content["comparison"]}
    assert ratios["efficiency", "parameters"] < 1
    shown, page = capsys.readouterr().out, (folder / "results.md").read_text()
    for text in (shown, page):
        for part in ("token_ppl", "target_ppl", "acc_norm", "zero-shot average", "decode_ms_batch16", "2 x 64 tokens"):
            assert part in text
    for item in content["results"]:
        assert item["protocol"]["description"] in page


def test_a_model_compared_with_itself_is_one_in_everything(evaluate, dense, monkeypatch):
    rounds = []
    real = evaluation.metrics.efficiency._timed_round
    monkeypatch.setattr(evaluation.metrics.efficiency, "_timed_round", lambda *a: rounds.append(a[1]) or real(*a))
    assert evaluate(dense, "--base_model", dense, "--compare", "--tasks", "wikitext,piqa,lambada,efficiency") == 0
    comparison = stored(dense / "evaluation")["comparison"]
    assert {item["metric"] for item in comparison} >= {"token_ppl", "acc", "target_ppl", "prefill_ms_batch1"}
    assert {item["difference"] for item in comparison} == {0}
    assert {item["ratio"] for item in comparison} <= {1, None}  # None: an accuracy of 0
    assert rounds == [1, 1, 16, 16]  # one model's rounds: the same weights are not measured twice


def test_a_third_column_is_the_recovered_model(evaluate, pruned, dense, saved, make):
    recovered = saved(make("llama-8q4kv", seed=1), "recovered")
    flags = ("--base_model", dense, "--compare", "--recovered_model", recovered, "--tasks", "wikitext")
    assert evaluate(pruned, *flags) == 0
    content = stored(pruned / "evaluation")
    assert list(content["models"]) == ["dense", "pruned", "recovered"]
    assert [item["role"] for item in content["comparison"]] == ["pruned", "recovered"]
    assert "| dense | pruned | vs dense | recovered | vs dense |" in (pruned / "evaluation/results.md").read_text()


def test_several_window_lengths_stand_side_by_side(evaluate, pruned):
    assert evaluate(pruned, "--tasks", "wikitext", "--seq_len", "32", "128") == 0
    results = stored(pruned / "evaluation")["results"]
    assert [item["protocol"]["seq_len"] for item in results] == [32, 128]
    assert results[0]["metrics"][0]["value"] != results[1]["metrics"][0]["value"]
    assert {metric["name"] for item in results for metric in item["metrics"]} == {"token_ppl"}


def test_running_again_adds_what_is_missing_and_repeats_nothing(evaluate, pruned, monkeypatch, capsys):
    assert evaluate(pruned, "--tasks", "wikitext,efficiency") == 0
    first = stored(pruned / "evaluation")["results"]
    assert evaluate(pruned, "--tasks", "wikitext,lambada,efficiency") == 0
    assert [item["task"] for item in stored(pruned / "evaluation")["results"]] == ["wikitext2", "efficiency", "lambada"]
    assert stored(pruned / "evaluation")["results"][:2] == first
    no_weights(monkeypatch)
    assert evaluate(pruned, "--tasks", "lambada,wikitext,efficiency") == 0
    assert "done before with the same protocol" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="weights were loaded"):
        evaluate(pruned, "--tasks", "wikitext", "--rerun")
    with pytest.raises(AssertionError, match="weights were loaded"):
        evaluate(pruned, "--tasks", "wikitext", "--limit", "1")


def test_the_order_of_tasks_changes_nothing(evaluate, pruned, tmp_path):
    found = []
    for number, tasks in enumerate(("wikitext,piqa,lambada", "lambada,wikitext,piqa")):
        assert evaluate(pruned, "--tasks", tasks, "--output", tmp_path / str(number)) == 0
        found.append({item["task"]: item["metrics"] for item in stored(tmp_path / str(number))["results"]})
    assert found[0] == found[1]


def test_a_failing_task_costs_no_other_its_result(evaluate, pruned, monkeypatch, capsys):
    def unreachable(*arguments, **named):
        raise ConnectionError("offline")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    assert evaluate(pruned, "--tasks", "wikitext,ptb,winogrande,piqa") == 1
    folder = pruned / "evaluation"
    found = {item["task"]: item for item in stored(folder)["results"]}
    assert {task: item["status"] for task, item in found.items()} == {
        "wikitext2": "done",
        "piqa": "done",
        "ptb": "failed",
        "winogrande": "failed",
    }
    for task, file in (("ptb", "ptb/ptb.test.txt"), ("winogrande", "tasks/winogrande_dev.jsonl")):
        assert found[task]["metrics"] == []
        assert file in found[task]["reason"]
        assert f"FAILED {task} (pruned)" in capsys.readouterr().out + (folder / "results.md").read_text()
    assert evaluate(pruned, "--tasks", "wikitext") == 0  # what fails is another run's affair


def test_a_task_that_fails_while_running_keeps_the_others(evaluate, pruned, monkeypatch):
    real = evaluation.jobs.run_task

    def broken(task, *arguments, **named):
        if task.spec.name == "piqa":
            raise RuntimeError("CUDA error: something\nand more")
        return real(task, *arguments, **named)

    monkeypatch.setattr(evaluation.jobs, "run_task", broken)
    assert evaluate(pruned, "--tasks", "piqa,lambada,wikitext") == 1
    found = {item["task"]: item for item in stored(pruned / "evaluation")["results"]}
    assert found["piqa"]["reason"] == "RuntimeError: CUDA error: something and more"
    assert found["lambada"]["status"] == found["wikitext2"]["status"] == "done"
    monkeypatch.setattr(evaluation.jobs, "run_task", real)
    assert evaluate(pruned, "--tasks", "piqa") == 0
    assert set(statuses(pruned / "evaluation").values()) == {"done"}


def test_interrupting_keeps_what_is_done(evaluate, pruned, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation.jobs, "run_task", interrupted)
    assert evaluate(pruned, "--tasks", "wikitext,piqa") == 1
    assert statuses(pruned / "evaluation") == {("pruned", "wikitext2"): "done"}


def test_nan_logits_fail_the_task_and_never_become_a_number(evaluate, saved, make, dense):
    broken = make("llama-8q4kv")
    with torch.no_grad():
        broken.lm_head.weight[5] = torch.nan
    folder = saved(broken, "broken")
    assert evaluate(folder, "--base_model", dense, "--compare", "--tasks", "wikitext,piqa,lambada") == 1
    content = stored(folder / "evaluation")
    for item in content["results"]:
        assert (item["status"], bool(item["metrics"])) == (
            ("done", True) if item["role"] == "dense" else ("failed", False)
        )
        assert item["role"] == "dense" or "nan" in item["reason"]
    assert content["collapsed"] is None
    assert "NaN" not in (folder / "evaluation/results.json").read_text()


def test_a_collapsed_model_is_called_so_loudly(evaluate, saved, make, dense, capsys):
    sharpened = make("llama-8q4kv")
    with torch.no_grad():
        sharpened.lm_head.weight.mul_(300)  # random, and sure of it
    folder = saved(sharpened, "sharpened")
    assert evaluate(folder, "--base_model", dense, "--compare", "--tasks", "wikitext") == 0
    assert stored(folder / "evaluation")["collapsed"] is True
    assert "COLLAPSED" in capsys.readouterr().err
    assert "COLLAPSED" in (folder / "evaluation/results.md").read_text()


def test_calibrating_on_the_evaluated_corpus_is_said(evaluate, pruned, capsys):
    source = "wikitext2, wikitext-2-raw-v1/train (head), wiki.train.head.raw"
    (pruned / "pruning_analysis.json").write_text(json.dumps({"scoring": {"calibration": {"source": source}}}))
    assert evaluate(pruned, "--tasks", "wikitext,c4") == 0
    (warning,) = stored(pruned / "evaluation")["warnings"]
    assert "wikitext-2-raw-v1/train (head)" in warning
    assert warning in capsys.readouterr().err


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


def test_a_folder_without_weights_is_refused_early(evaluate, dense, pruned, tmp_path, monkeypatch, capsys):
    no_weights(monkeypatch)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(dense / "config.json", empty)
    for flags in (("--tasks", "wikitext"), ("--base_model", dense, "--compare")):
        assert evaluate(empty, *flags) == 2
        assert "folder without" in capsys.readouterr().err
    assert evaluate(pruned, "--base_model", empty, "--compare") == 2
    assert evaluate(tmp_path / "nowhere" / "x") == 2
    assert "not there" in capsys.readouterr().err
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


def test_a_tokenizer_of_another_model_is_refused(evaluate, pruned, saved, make, capsys):
    small = make_tiny("llama-8q4kv", vocab_size=200, bos_token_id=1, eos_token_id=2)
    folder = saved(small, "small")
    assert evaluate(folder, "--tasks", "wikitext") == 2
    assert "at most 200 tokens" in capsys.readouterr().err
    assert not (folder / "evaluation").exists()


def test_a_window_longer_than_the_model_is_refused(evaluate, pruned, capsys):
    assert evaluate(pruned, "--tasks", "wikitext", "--seq_len", "4096") == 2
    assert "2 to 512 tokens" in capsys.readouterr().err


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
    assert "pip install 'hgsp[eval]'" in capsys.readouterr().err


def test_the_tokenizer_comes_from_the_base_model_or_the_checkpoint(evaluate, pruned, dense):
    assert evaluate(pruned / "pruned_model.bin", "--tasks", "wikitext") == 0
    assert evaluate(pruned, "--tasks", "wikitext", "--base_model", dense) == 0
    assert len(stored(pruned / "evaluation")["results"]) == 1  # the same tokenizer: the same measurement


def test_hgsp_evaluate_is_the_same_command(pruned, data):
    settings = [part for pair in FAST.items() for part in pair]
    arguments = ["evaluate", "--model_path", str(pruned), "--data_dir", str(data), "--tasks", "wikitext", *settings]
    assert cli.main(arguments) == 0
    assert statuses(pruned / "evaluation") == {("pruned", "wikitext2"): "done"}


@pytest.mark.parametrize("inside", [True, False])
def test_the_script_runs_from_anywhere(pruned, data, tmp_path, inside):
    """Python puts evaluation/ on the path of a script that lies there, and not the repository."""
    script = "evaluation/run_evaluation.py" if inside else str(REPOSITORY / "evaluation/run_evaluation.py")
    done = subprocess.run(
        [sys.executable, script, "--model_path", str(pruned), "--data_dir", str(data), "--tasks", "wikitxt"],
        cwd=REPOSITORY if inside else tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "did you mean wikitext" in done.stderr
