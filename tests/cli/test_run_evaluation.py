"""The evaluation recipe as users call it: outputs and messages; no failure costs another task's result."""

import copy
import json
import os

import pytest
import torch

import hgsp.evaluation.jobs
import hgsp.evaluation.metrics.efficiency
from conftest import make_tiny
from evaluating import no_weights, statuses, stored
from reports import CALIBRATION, pruning


def test_results_lie_under_the_models_folder_and_in_the_terminal(evaluate, pruned, dense, capsys):
    flags = ("--base_model", dense, "--compare", "--tasks", "wikitext,c4,lambada,piqa,efficiency")
    assert evaluate(pruned / "pruned_model.bin", *flags) == 0
    folder = pruned / "evaluation"
    assert {path.name for path in folder.iterdir()} == {
        *("evaluation.log", "results.json", "results.md", "results.run.yaml", "report.html", "report.md")
    }
    content = stored(folder)
    assert {role for role, _ in statuses(folder)} == {"dense", "pruned"}
    assert {task for _, task in statuses(folder)} == {"wikitext2", "c4", "lambada", "piqa", "efficiency"}
    assert set(statuses(folder).values()) == {"done"}
    assert content["collapsed"] is False
    assert content["environment"]["lm-eval"]
    assert content["command"].startswith("run_evaluation.py --model_path")
    ratios = {(item["task"], item["metric"]): item["ratio"] for item in content["comparison"]}
    assert ratios["efficiency", "parameters"] < 1
    assert {item["task"] for item in content["comparison"] if item["difference_stderr"] is not None} == {
        *("lambada", "piqa", "zero-shot average")
    }
    shown, page = capsys.readouterr().out, (folder / "results.md").read_text()
    for text, latency in ((shown, "decode ms b16"), (page, "decode_ms_batch16")):
        for part in ("token_ppl", "target_ppl", "acc_norm", "zero-shot average", latency, "2 x 64 tokens"):
            assert part in text
    for item in content["results"]:
        assert item["protocol"]["description"] in page
    weights = next(item for item in content["results"] if item["role"] == "dense" and item["task"] == "efficiency")
    size = {metric["name"]: metric["value"] for metric in weights["metrics"]}["weight_bytes"]
    assert f"weight_bytes {size / 1000:.4g} kB" in (folder / "evaluation.log").read_text()


def test_a_model_compared_with_itself_is_one_in_everything(evaluate, dense, monkeypatch):
    rounds = []
    real = hgsp.evaluation.metrics.efficiency._timed_round
    monkeypatch.setattr(hgsp.evaluation.metrics.efficiency, "_timed_round", lambda *a: rounds.append(a[1]) or real(*a))
    assert evaluate(dense, "--base_model", dense, "--compare", "--tasks", "wikitext,piqa,lambada,efficiency") == 0
    comparison = stored(dense / "evaluation")["comparison"]
    assert {item["metric"] for item in comparison} >= {"token_ppl", "acc", "target_ppl", "prefill_ms_batch1"}
    assert {item["difference"] for item in comparison} == {0}
    assert {item["ratio"] for item in comparison} <= {1, None}  # None: an accuracy of 0
    assert rounds == [1, 1, 16, 16]  # one model's rounds: the same weights are not measured twice


def test_a_third_column_is_the_recovered_model(evaluate, pruned, dense, saved, make):
    spoiled = make("llama-8q4kv", seed=1)
    with torch.no_grad():
        spoiled.lm_head.weight.mul_(2)
    recovered = saved(spoiled, "recovered")
    flags = ("--base_model", dense, "--compare", "--recovered_model", recovered, "--tasks", "wikitext")
    assert evaluate(pruned, *flags) == 0
    content = stored(pruned / "evaluation")
    assert list(content["models"]) == ["dense", "pruned", "recovered"]
    assert [item["role"] for item in content["comparison"]] == ["pruned", "recovered"]
    assert "| dense | pruned | vs dense | recovered | vs dense |" in (pruned / "evaluation/results.md").read_text()
    (warning,) = content["warnings"]
    assert "RECOVERY MADE IT WORSE" in warning  # a warning, not a failure


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
    assert "measured before with the same protocol" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="weights were loaded"):
        evaluate(pruned, "--tasks", "wikitext", "--rerun")
    for task in ("wikitext", "lambada"):
        with pytest.raises(AssertionError, match="weights were loaded"):
            evaluate(pruned, "--tasks", task, "--limit", "1")


def test_a_result_that_was_moved_is_measured_on_there(evaluate, pruned, tmp_path, monkeypatch):
    assert evaluate(pruned, "--tasks", "wikitext") == 0
    moved = pruned.rename(tmp_path / "moved")
    no_weights(monkeypatch)
    assert evaluate(moved, "--tasks", "wikitext") == 0
    assert stored(moved / "evaluation")["models"]["pruned"]["path"] == ".."
    assert "moved: evaluation" in (moved / "evaluation/results.md").read_text()


def test_another_tokenizer_is_another_measurement(evaluate, pruned, tokenizer, tmp_path):
    """The same model, with a vocabulary large enough for both tokenizers."""
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["English"])
    (tmp_path / "other").mkdir()
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").touch()
    make_tiny("llama-8q4kv", vocab_size=len(other)).save_pretrained(tmp_path / "larger")
    flags = ("--tasks", "wikitext", "--output", tmp_path / "out", "--base_model")
    tokenizer.save_pretrained(tmp_path / "larger")
    assert evaluate(tmp_path / "larger", *flags, pruned) == 0
    assert evaluate(tmp_path / "larger", *flags, tmp_path / "other") == 0
    assert [item["num_items"] for item in stored(tmp_path / "out")["results"]] == [2, 2]


def test_efficiency_beside_another_model_replaces_efficiency_alone(evaluate, pruned, dense):
    assert evaluate(pruned, "--tasks", "efficiency") == 0
    assert evaluate(pruned, "--tasks", "efficiency", "--base_model", dense, "--compare") == 0
    results = stored(pruned / "evaluation")["results"]
    assert [item["role"] for item in results] == ["dense", "pruned"]
    assert results[0]["request"] == results[1]["request"]
    assert evaluate(pruned, "--tasks", "efficiency", "--prompt_len", "8") == 0
    assert len(stored(pruned / "evaluation")["results"]) == 3  # another prompt is another measurement


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
    assert evaluate(pruned, "--tasks", "wikitext") == 0  # the failed task concerns another run


def test_a_task_that_fails_while_running_keeps_the_others(evaluate, pruned, monkeypatch):
    real = hgsp.evaluation.jobs.run_task

    def broken(task, *arguments, **named):
        if task.spec.name == "piqa":
            raise RuntimeError("CUDA error: something\nand more")
        return real(task, *arguments, **named)

    monkeypatch.setattr(hgsp.evaluation.jobs, "run_task", broken)
    assert evaluate(pruned, "--tasks", "piqa,lambada,wikitext") == 1
    found = {item["task"]: item for item in stored(pruned / "evaluation")["results"]}
    assert found["piqa"]["reason"] == "RuntimeError: CUDA error: something and more"
    assert found["lambada"]["status"] == found["wikitext2"]["status"] == "done"
    monkeypatch.setattr(hgsp.evaluation.jobs, "run_task", real)
    assert evaluate(pruned, "--tasks", "piqa") == 0
    assert set(statuses(pruned / "evaluation").values()) == {"done"}


def test_a_failure_of_an_earlier_run_does_not_fail_this_one(evaluate, saved, make):
    large = make("llama-8q4kv")
    with torch.no_grad():
        mlp = large.model.layers[0].mlp
        mlp.up_proj.weight.mul_(1e5)  # down_proj undoes it; float16 holds the weights, but not their outputs
        mlp.down_proj.weight.div_(1e5)
    folder = saved(large, "large")
    for dtype, code in (("float16", 1), ("float32", 0), ("float32", 0), ("float16", 1)):
        assert evaluate(folder, "--tasks", "wikitext", "--dtype", dtype) == code
    found = {item["request"]["dtype"]: item["status"] for item in stored(folder / "evaluation")["results"]}
    assert found == {"float16": "failed", "float32": "done"}


def test_a_damaged_task_file_and_an_empty_text_cost_no_other_its_result(evaluate, pruned, data, tmp_path):
    (data / "tasks/piqa_valid-labels.lst").write_text("0\n0\n1\n")
    for name, content in (("empty.txt", ""), ("letter.txt", "a")):
        (tmp_path / name).write_text(content)
    texts = [str(tmp_path / name) for name in ("empty.txt", "letter.txt")]
    assert evaluate(pruned, "--tasks", ",".join(("wikitext,piqa", *texts, "lambada"))) == 1
    folder = pruned / "evaluation"
    failed = {item["task"]: item["reason"] for item in stored(folder)["results"] if item["status"] == "failed"}
    assert {task for (_, task), status in statuses(folder).items() if status == "done"} == {"wikitext2", "lambada"}
    assert "piqa_valid.jsonl" in failed["piqa"]
    assert "nothing in empty.txt" in failed[os.path.relpath(texts[0], folder)]
    assert "at least two tokens" in failed[os.path.relpath(texts[1], folder)]
    assert "FAILED piqa (pruned)" in (folder / "results.md").read_text()


def test_interrupting_keeps_what_is_done(evaluate, pruned, monkeypatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(hgsp.evaluation.jobs, "run_task", interrupted)
    assert evaluate(pruned, "--tasks", "wikitext,piqa") == 1
    assert statuses(pruned / "evaluation") == {("pruned", "wikitext2"): "done"}


def test_nan_logits_fail_the_task_and_never_become_a_number(evaluate, saved, make, dense):
    broken = make("llama-8q4kv")
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.finfo(torch.float32).max)  # finite, as weights must be
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


def test_float16_for_a_bfloat16_model_is_warned_of(evaluate, saved, make, dense, capsys):
    folder = saved(make("llama-8q4kv").bfloat16(), "stored-in-bfloat16")
    flags = ("--base_model", dense, "--compare", "--tasks", "wikitext", "--dtype")
    for dtype, said in (("float16", True), ("float32", False)):
        assert evaluate(folder, *flags, dtype) == 0
        shown = [line for line in capsys.readouterr().err.splitlines() if "overflow" in line]
        assert [str(folder) in line for line in shown] == [True] * said


def test_a_collapsed_model_is_called_so_loudly(evaluate, saved, make, dense, capsys):
    sharpened = make("llama-8q4kv")
    with torch.no_grad():
        sharpened.lm_head.weight.mul_(300)  # random but confident
    folder = saved(sharpened, "sharpened")
    assert evaluate(folder, "--base_model", dense, "--compare", "--tasks", "wikitext") == 0
    assert stored(folder / "evaluation")["collapsed"] is True
    assert "COLLAPSED" in capsys.readouterr().err
    assert "COLLAPSED" in (folder / "evaluation/results.md").read_text()


def test_calibrating_on_the_evaluated_corpus_is_said(evaluate, pruned, capsys):
    source = "wikitext2, wikitext-2-raw-v1/train (head), wiki.train.head.raw"
    (pruned / "pruning_analysis.json").write_text(
        json.dumps(pruning(scoring={**pruning()["scoring"], "calibration": {**CALIBRATION, "source": source}}))
    )
    assert evaluate(pruned, "--tasks", "wikitext,c4") == 0
    (warning,) = stored(pruned / "evaluation")["warnings"]
    assert "wikitext-2-raw-v1/train (head)" in warning
    assert warning in capsys.readouterr().err


def test_the_tokenizer_comes_from_the_base_model_or_the_checkpoint(evaluate, pruned, dense):
    assert evaluate(pruned / "pruned_model.bin", "--tasks", "wikitext") == 0
    assert evaluate(pruned, "--tasks", "wikitext", "--base_model", dense) == 0
    assert len(stored(pruned / "evaluation")["results"]) == 1  # the same tokenizer: the same measurement
