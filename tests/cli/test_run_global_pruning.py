"""The pruning recipe as users call it: outputs, messages and refusals; a failure leaves no files."""

import csv
import json
import shlex
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

import run_global_pruning
from conftest import TINY, VOCAB, make_tiny
from hgsp.cli import main as cli
from hgsp.console import result_folders as folders
from hgsp.console.exit_codes import run_guarded
from hgsp.evaluation.config import CPU_EVAL_WINDOWS
from hgsp.models import checkpoint
from hgsp.models.checkpoint import load_pruned
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import PrunePlan
from hgsp.scoring.scores import Scores

RESULTS_OF_TWO = ("out_10", "out_20")
SETTINGS = {
    "--pruning_ratio": "0.2",
    "--temperature": "0.0",
    "--eval_tasks": "builtin",
    "--eval_max_windows": "2",
    "--eval_seq_len": "64",
    "--nsamples": "4",
    "--seq_len": "32",
    "--dtype": "float32",
    "--device": "cpu",
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory, tokenizer):
    """``dense(name)`` is the folder of a saved tiny model, written once."""

    def folder(name="llama-8q4kv"):
        path = tmp_path_factory.getbasetemp() / "dense" / name
        if not path.exists():
            make_tiny(name).save_pretrained(path)
            tokenizer.save_pretrained(path)
        return path

    return folder


@pytest.fixture(scope="module")
def prune(dense, text_file):
    """``prune(results_dir, *flags, model=folder)`` runs the recipe and returns its exit code; later flags win."""

    def run(results, *flags, model=None, name="out"):
        paths = ("--base_model", model or dense(), "--dataset", text_file, "--results_dir", results)
        settings = [part for pair in SETTINGS.items() for part in pair]
        return run_global_pruning.main([str(part) for part in (*settings, *paths, "--output_name", name, *flags)])

    return run


@pytest.fixture(scope="module")
def result(prune, tmp_path_factory):
    """One finished run at 20 %, for tests that only read it."""
    results = tmp_path_factory.mktemp("results")
    assert prune(results) == 0
    return results / "out"


@pytest.fixture(scope="module")
def analysis(result):
    return json.loads((result / "pruning_analysis.json").read_text())


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def num_stored(folder):
    return sum(tensor.numel() for file in folder.glob("*.safetensors") for tensor in load_file(file).values())


def test_everything_that_was_promised_is_written(result):
    promised = {
        "pruned_model.bin",
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "pruning_analysis.json",
        "global_group_table.csv",
        "logs/training.log",
        "prune_plan.json",
        "scores.npz",
        "report.html",
        "report.md",
    }
    assert promised <= set(everything_in(result))
    assert [path.name for path in result.parent.iterdir()] == ["out"]


def test_the_analysis_has_the_promised_keys(analysis):
    promised = {
        "schema_version",
        "command",
        "base_model",
        "importance_method",
        "asked_ratio",
        "reached_ratio",
        "reached_ratio_decoder",
        "params_before",
        "params_after",
        "kv_cache_bytes_per_token_before",
        "kv_cache_bytes_per_token_after",
        "removed_layers",
        "layers",
        "evaluation",
        "timings_s",
        "peak_memory_bytes",
        "environment",
        "warnings",
    }
    assert promised <= set(analysis)
    assert {"layer", "kept_kv_groups", "kept_mlp_channels", "kept_ratio"} <= set(analysis["layers"][0])
    assert {"torch", "transformers", "device", "seed"} <= set(analysis["environment"])
    assert analysis["command"].startswith("run_global_pruning.py --pruning_ratio 0.2")
    assert {"load", "score", "cut", "save", "evaluate"} <= set(analysis["timings_s"])
    assert analysis["peak_memory_bytes"] > 10**7


def test_reported_sizes_are_those_of_the_model_and_its_file(result, analysis, dense):
    """Parameters equal the values stored, both denominators are reported, and KV bytes match a real cache."""
    model, base = load_pruned(result), load_pruned(dense())
    before, after = (sum(p.numel() for p in m.parameters()) for m in (base, model))
    assert (analysis["params_before"], analysis["params_after"]) == (before, after)
    assert after == num_stored(result)
    assert analysis["reached_ratio"] == (before - after) / before
    layers = sum(p.numel() for p in base.model.layers.parameters())
    assert analysis["reached_ratio_decoder"] == (before - after) / layers
    for which, measured in (("before", base), ("after", model)):
        cache = measured(torch.arange(7)[None]).past_key_values
        stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert analysis[f"kv_cache_bytes_per_token_{which}"] * 7 == stored


def test_kept_indices_of_the_report_reproduce_the_saved_weights(result, analysis, dense):
    """Slicing the base model by pruning_analysis.json gives the saved file bit for bit."""
    old, new = load_pruned(dense()), load_pruned(result)
    D, R = 8, 2
    for before, after, entry in zip(old.model.layers, new.model.layers, analysis["layers"], strict=True):
        kv, channels = entry["kept_kv_groups"], entry["kept_mlp_channels"]
        kv_rows = [k * D + i for k in kv for i in range(D)]
        query_rows = [k * R * D + i for k in kv for i in range(R * D)]
        attention, mlp = before.self_attn, before.mlp
        assert torch.equal(after.self_attn.q_proj.weight, attention.q_proj.weight[query_rows])
        assert torch.equal(after.self_attn.k_proj.weight, attention.k_proj.weight[kv_rows])
        assert torch.equal(after.self_attn.v_proj.weight, attention.v_proj.weight[kv_rows])
        assert torch.equal(after.self_attn.o_proj.weight, attention.o_proj.weight[:, query_rows])
        assert torch.equal(after.mlp.gate_proj.weight, mlp.gate_proj.weight[channels])
        assert torch.equal(after.mlp.up_proj.weight, mlp.up_proj.weight[channels])
        assert torch.equal(after.mlp.down_proj.weight, mlp.down_proj.weight[:, channels])
        kept = sum(p.numel() for p in after.parameters()) / sum(p.numel() for p in before.parameters())
        assert entry["kept_ratio"] == kept


def test_group_table_plan_and_analysis_tell_the_same_story(result, analysis):
    plan = PrunePlan.read_json(result / "prune_plan.json")
    with (result / "global_group_table.csv").open(newline="") as source:
        rows = list(csv.DictReader(source))
    assert len(rows) == 3 * (4 + 96)
    for index, (entry, keep) in enumerate(zip(analysis["layers"], plan.layers, strict=True)):
        for kind, key, planned in (
            ("attention", "kept_kv_groups", keep.kv_groups),
            ("mlp", "kept_mlp_channels", keep.mlp_channels),
        ):
            block = [row for row in rows if row["layer"] == str(index) and row["kind"] == kind]
            assert [int(row["group"]) for row in block if row["kept"] == "1"] == entry[key] == list(planned)
    removed = sum(int(row["cost"]) for row in rows if row["kept"] == "0")
    assert removed == plan.removed_params == analysis["params_before"] - analysis["params_after"]


def test_evaluation_says_what_it_measured(analysis):
    """Each perplexity comes with its protocol, the same before and after."""
    before, after = (analysis["evaluation"][when]["builtin"] for when in ("before", "after"))
    protocol = {"seq_len": 64, "stride": 64, "windows": 2, "tokens": 126, "bos": False, "dtype": "float32"}
    for measured in (before, after):
        assert {key: measured[key] for key in protocol} == protocol
        assert measured["split"] == "odd topics"
    assert before["ppl"] != after["ppl"]
    assert before["sha256"] == after["sha256"]


def test_the_log_has_dense_perplexity_before_anything_is_cut_and_both_samples(result, analysis):
    log = (result / "logs" / "training.log").read_text()
    assert "command: run_global_pruning.py" in log
    before, after = log.index("before: PPL"), log.index("after: PPL")
    assert before < log.index("before, greedy: ") < after < log.index("after, greedy: ")
    assert f"{analysis['evaluation']['before']['builtin']['ppl']:.4f}" in log[before : before + 40]
    assert analysis["samples"]["before"] != analysis["samples"]["after"]


def test_the_user_sees_one_table_and_the_next_command(prune, tmp_path, capsys):
    assert prune(tmp_path) == 0
    output = capsys.readouterr()
    for part in ("parameters", "weight bytes", "KV", "PPL builtin", "asked 0.2000", "seconds", "peak memory"):
        assert part in output.out
    assert "next: hgsp evaluate --model_path" in output.err
    assert str(tmp_path / "out") in output.err


@pytest.mark.parametrize("name", TINY)
def test_every_family_and_geometry_reaches_every_ratio_and_generates(prune, saved, tmp_path, name):
    """One run reaches three ratios within one channel; MLP channels fill the gap that whole KV groups leave."""
    flags = ("--pruning_ratio", "0.1", "0.2", "0.4", "--min_mlp_width", "4", "--skip_evaluation", "--no_bin")
    model = make_tiny(name, vocab_size=VOCAB + 1)  # the tokenizer class of Qwen2 adds a token
    assert prune(tmp_path, *flags, model=saved(model)) == 0
    geometry = geometry_of(model)
    for percent in (10, 20, 40):
        folder = tmp_path / f"out_{percent}"
        removed = geometry.total_params - num_stored(folder)
        assert 0 <= percent / 100 * geometry.total_params - removed <= geometry.mlp_channel_params
        model = AutoModelForCausalLM.from_pretrained(folder)
        prompt = AutoTokenizer.from_pretrained(folder)("Once", return_tensors="pt")
        assert model.generate(**prompt, max_new_tokens=4, do_sample=False, pad_token_id=257).shape == (1, 8)


def test_ratio_zero_is_the_dense_model(prune, dense, tokens, tmp_path):
    """Logits, parameters and perplexity are identical."""
    assert prune(tmp_path, "--pruning_ratio", "0") == 0
    assert torch.equal(load_pruned(tmp_path / "out")(tokens).logits, load_pruned(dense())(tokens).logits)
    analysis = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())
    assert analysis["params_after"] == analysis["params_before"]
    assert analysis["evaluation"]["after"] == analysis["evaluation"]["before"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"


def test_full_method_by_default(prune, tmp_path):
    """At temperature 1 layers are measured, and the table shows the factor of each score."""
    assert prune(tmp_path, "--temperature", "1.0", "--skip_evaluation") == 0
    with (tmp_path / "out" / "global_group_table.csv").open(newline="") as source:
        priors = {row["prior"] for row in csv.DictReader(source)}
    assert len(priors) > 1


def test_bf16_is_the_default_and_everything_the_user_had_is_kept(prune, dense, tmp_path):
    """A float32 folder without --dtype gives bf16; tokenizer, chat template and use_cache are kept."""
    base = shutil.copytree(dense(), tmp_path / "base")
    template = "{{ messages[0]['content'] }}"
    (base / "chat_template.jinja").write_text(template)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"use_cache": False}))
    argv = [f"--{key}={value}" for key, value in {"base_model": base, "output_name": "out", "nsamples": 4}.items()]
    argv += ["--seq_len=32", "--pruning_ratio=0.2", "--dataset=builtin", "--skip_evaluation", "--device=cpu"]
    assert run_global_pruning.main([*argv, f"--results_dir={tmp_path}"]) == 0
    tensors = load_file(tmp_path / "out" / "model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (saved["dtype"], saved["use_cache"]) == ("bfloat16", False)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template
    assert (tmp_path / "out" / "generation_config.json").is_file()


def test_same_seed_same_weights_and_another_seed_others(prune, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        assert prune(tmp_path, "--seed", seed, "--skip_evaluation", name=name) == 0
    one, again, other = ((tmp_path / n / "prune_plan.json").read_bytes() for n in ("one", "again", "other"))
    assert one == again
    assert one != other


def test_a_flag_given_twice_takes_the_last_value(prune, tmp_path):
    assert prune(tmp_path, "--pruning_ratio", "0.4", "--pruning_ratio", "0.1", "--skip_evaluation") == 0
    analysis = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())
    assert analysis["asked_ratio"] == 0.1


def test_no_bin_and_skip_evaluation_do_what_they_say(prune, tmp_path):
    assert prune(tmp_path, "--no_bin", "--skip_evaluation", "--eval_tasks", "wikitext") == 0
    assert not list((tmp_path / "out").glob("*.bin"))
    analysis = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())
    assert analysis["evaluation"] == {"before": {}, "after": {}}


def test_calibrating_on_the_text_that_is_evaluated_is_a_warning_in_log_and_json(prune, text_file, tmp_path):
    assert prune(tmp_path, "--eval_tasks", text_file) == 0
    (warning,) = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())["warnings"]
    for line in (warning, (tmp_path / "out" / "logs" / "training.log").read_text()):
        assert "calibrated on the evaluation text itself" in line


@pytest.mark.parametrize(("asked", "windows"), [("", CPU_EVAL_WINDOWS), ("0", 20), ("18", 18)])
def test_a_cpu_measures_the_first_windows_unless_told_otherwise_and_says_so(
    prune, text_file, tmp_path, monkeypatch, asked, windows
):
    """The report says how much text a perplexity covers."""
    monkeypatch.delitem(SETTINGS, "--eval_max_windows")
    text = tmp_path / "short.txt"
    text.write_text(text_file.read_text()[: 20 * 32])
    flags = {"--eval_tasks": text, "--eval_seq_len": "32", "--eval_max_windows": asked}
    assert prune(tmp_path, *[part for flag, value in flags.items() if value for part in (flag, value)]) == 0
    analysis = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())
    assert [result["windows"] for result in analysis["evaluation"]["after"].values()] == [windows]
    assert any("--eval_max_windows 0" in warning for warning in analysis["warnings"]) == (not asked)


def test_shared_wikitext_calibrates_on_train_and_warns_of_the_same_corpus(prune, data_dir, tmp_path):
    assert prune(tmp_path, "--dataset", "wikitext2", "--eval_tasks", "wikitext", "--data_dir", data_dir) == 0
    analysis = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())
    assert analysis["evaluation"]["after"]["wikitext2"]["split"] == "wikitext-2-raw-v1/test"
    assert "wikitext-2-raw-v1/train" in analysis["scoring"]["calibration"]["source"]
    assert any("same corpus" in warning for warning in analysis["warnings"])


def test_a_collapsed_result_is_called_so_in_its_report_and_on_the_screen(
    prune, analysis, tmp_path, monkeypatch, capsys
):
    assert analysis["collapsed"] is False
    monkeypatch.setattr("hgsp.evaluation.collapse.COLLAPSE_FACTOR", 0.5)
    assert prune(tmp_path) == 0
    report = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())
    assert report["collapsed"] is True
    assert any(warning.startswith("COLLAPSED") for warning in report["warnings"])
    assert "COLLAPSED" in capsys.readouterr().err


def test_dry_run_prints_every_layer_loads_no_weights_and_writes_nothing(prune, dense, tmp_path, capsys):
    base = shutil.copytree(dense(), tmp_path / "base")
    (base / "model.safetensors").unlink()
    before = everything_in(tmp_path)
    assert prune(tmp_path / "results", "--dry_run", model=base) == 0
    output = capsys.readouterr().out
    geometry = geometry_of(make_tiny("llama-8q4kv"))
    layer = geometry.layer_params(geometry.shapes[0])
    assert output.count(f"{layer:,}") >= 3
    assert output.count(f"{4 * layer:,}") >= 3
    assert f"{geometry.total_params:,}" in output
    assert f"{geometry.kv_cache_bytes_per_token(geometry.shapes, 4):,}" in output
    assert everything_in(tmp_path) == before


def earlier_result(folder):
    folder.mkdir()
    (folder / "mine").write_text("precious")
    (folder / "pruning_analysis.json").write_text("{}")


def test_an_existing_result_is_refused_before_any_work_and_replaced_with_overwrite(
    prune, tmp_path, capsys, monkeypatch
):
    earlier_result(tmp_path / "out")
    monkeypatch.setattr("hgsp.pipeline.request.inspect_model", lambda *_args: pytest.fail("looked at the model"))
    assert prune(tmp_path) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert everything_in(tmp_path) == ["out", "out/mine", "out/pruning_analysis.json"]
    monkeypatch.undo()
    assert prune(tmp_path, "--overwrite", "--skip_evaluation") == 0
    assert not (tmp_path / "out" / "mine").exists()
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_result_of_several_ratios_is_refused_if_one_of_them_exists(prune, tmp_path):
    (tmp_path / "out_20").mkdir()
    assert prune(tmp_path, "--pruning_ratio", "0.1", "0.2") == 2
    assert everything_in(tmp_path) == ["out_20"]


BAD_REQUESTS = {
    "ratio of one": (["--pruning_ratio", "1.0"], "--pruning_ratio to be in [0, 1)"),
    "ratio out of reach": (["--pruning_ratio", "0.9"], "a ratio of at most 0."),
    "unknown calibration text": (["--dataset", "wikitext103"], "wikitext2, ptb, c4, builtin"),
    "unknown evaluation text": (["--eval_tasks", "wiki"], "--eval_tasks"),
    "no samples": (["--nsamples", "0"], "--nsamples"),
    "more samples than the text has": (["--nsamples", "100000"], "use --nsamples"),
    "no instructions": (["--finetune", "--finetune_data_path", "no.jsonl"], "no.jsonl"),
    "no such model": (["--base_model", "./nowhere"], "./nowhere"),
    "no such device": (["--device", "cuda:99"], "--device to be one of cpu"),
    "no such kind of device": (["--device", "abacus"], "'abacus'"),
    "too many frozen layers": (["--freeze_first_n_layers", "2", "--freeze_last_n_layers", "2"], "frozen layers"),
    "scores that are none": (["--scores", "no.npz"], "no.npz"),
    "window beyond the model": (["--eval_seq_len", "513"], "--eval_seq_len of at most 512"),
    "calibration beyond the model": (["--seq_len", "513"], "--seq_len of at most 512"),
    "no such data folder": (["--dataset", "ptb", "--data_dir", "./nowhere"], "--data_dir to be a folder"),
    "results in the parent": (["--output_name", "../out"], "--output_name"),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_bad_input_is_exit_code_2_with_one_line_and_nothing_written(prune, tmp_path, capsys, what):
    flags, message = BAD_REQUESTS[what]
    assert prune(tmp_path / "results", *flags) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert everything_in(tmp_path) == []


def test_an_unsupported_architecture_is_exit_code_2_and_nothing_written(prune, tmp_path, capsys):
    GPT2Config(n_layer=1, n_embd=16, n_head=2).save_pretrained(tmp_path / "gpt2")
    assert prune(tmp_path / "results", model=tmp_path / "gpt2") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "unsupported architecture 'gpt2'" in error
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", ["prune", "score"])
def test_a_tokenizer_larger_than_the_embedding_is_refused_before_weights_are_loaded(
    dense, text_file, tokenizer, tmp_path, capsys, monkeypatch, command
):
    """Token ids without an embedding row would otherwise stop the run in the middle of scoring."""
    base = tmp_path / "base"
    make_tiny("llama-8q4kv", vocab_size=len(tokenizer) - 1, eos_token_id=0).save_pretrained(base)
    tokenizer.save_pretrained(base)
    (base / "model.safetensors").unlink()  # loading weights would fail differently
    before = everything_in(tmp_path)
    flags = {"--base_model": base, "--dataset": text_file, "--nsamples": 4, "--seq_len": 32, "--device": "cpu"}
    if command == "prune":
        flags |= {"--output_name": "out", "--results_dir": tmp_path, "--pruning_ratio": 0.2}
    else:
        flags |= {"--output": tmp_path / "scores.npz"}
    argv = [str(part) for pair in flags.items() for part in pair]
    assert cli.main([command, *argv, *(["--skip_evaluation"] if command == "prune" else [])]) == 2
    assert "a tokenizer of at most 257 tokens" in capsys.readouterr().err
    assert everything_in(tmp_path) == before


def test_gradient_checkpointing_prunes_the_same(prune, result, tmp_path):
    """Importances agree within rtol 1e-4; on a CPU they are bit-equal."""
    assert prune(tmp_path, "--use_gradient_checkpointing", "--skip_evaluation") == 0
    again, first = (Scores.read(folder / "scores.npz").by_layer for folder in (tmp_path / "out", result))
    for one, two in zip(again, first, strict=True):
        for part, values in two.items():
            np.testing.assert_allclose(one[part], values, rtol=1e-4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError()])
def test_out_of_memory_while_scoring_names_what_to_try_and_leaves_nothing(prune, tmp_path, capsys, monkeypatch, error):
    def fail(*args, **named):
        raise error

    monkeypatch.setattr("hgsp.scoring.score.gather_backward", fail)
    assert prune(tmp_path, "--skip_evaluation") == 1
    message = capsys.readouterr().err
    for remedy in (
        "--batch_size 1",
        "--use_gradient_checkpointing",
        "--nsamples",
        "--seq_len",
        "--offload",
        "magnitude",
    ):
        assert remedy in message
    assert everything_in(tmp_path) == []


FAILURES = {
    "interrupt": (KeyboardInterrupt(), "interrupted; no partial output is left behind"),
    "out of memory": (MemoryError(), "out of memory (MemoryError); no partial output is left behind. Try"),
    "out of GPU memory": (RuntimeError("CUDA out of memory. Tried"), "out of memory (CUDA out of memory"),
}


@pytest.mark.parametrize("what", FAILURES)
@pytest.mark.parametrize(("module", "where"), [(checkpoint, "save_pruned"), (folders, "refuse_existing")])
def test_failure_halfway_is_exit_code_1_and_leaves_only_what_was_there(
    prune, tmp_path, capsys, monkeypatch, what, module, where
):
    """An earlier result survives even --overwrite, and even a failure just before the new one is moved in place."""
    error, message = FAILURES[what]
    earlier_result(tmp_path / "out")
    genuine, calls = getattr(module, where), []

    def fail(*args, **kwargs):
        calls.append(args)
        genuine(*args, **kwargs)
        if where == "save_pruned" or len(calls) == 3:  # before the work, at its start, and before the folder is moved
            raise error

    monkeypatch.setattr(module, where, fail)
    assert prune(tmp_path, "--overwrite", "--skip_evaluation") == 1
    assert message in capsys.readouterr().err
    assert everything_in(tmp_path) == ["out", "out/mine", "out/pruning_analysis.json"]


def test_a_bug_is_not_dressed_up_as_bad_input(prune, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(checkpoint, "save_pruned", broken)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        prune(tmp_path, "--skip_evaluation")
    assert everything_in(tmp_path) == []


def test_weights_that_are_not_finite_stop_the_run_by_name(tokenizer, prune, tmp_path, capsys):
    """The refusal names the tensor; NaNs are never sorted, and nothing is written."""
    model = make_tiny("llama-8q4kv")
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    assert prune(tmp_path / "results", model=tmp_path / "broken") == 2
    assert "1 NaN or infinite values in model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err
    assert not (tmp_path / "results").exists() or everything_in(tmp_path / "results") == []


def test_scores_of_a_run_cut_the_same_model_again_without_text(prune, result, tmp_path):
    flags = ("--scores", result / "scores.npz", "--dataset", "wikitext2", "--skip_evaluation")
    assert prune(tmp_path, *flags) == 0
    again, first = (PrunePlan.read_json(folder / "prune_plan.json") for folder in (tmp_path / "out", result))
    assert again.layers == first.layers


def test_scores_of_another_model_are_refused(prune, result, tokenizer, tmp_path, capsys):
    make_tiny("llama-8q4kv", seed=1).save_pretrained(tmp_path / "twin")
    tokenizer.save_pretrained(tmp_path / "twin")
    assert prune(tmp_path / "results", "--scores", result / "scores.npz", model=tmp_path / "twin") == 2
    assert "the same sizes with other weights" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_the_hgsp_command_dispatches_and_refuses_what_it_does_not_know(capsys):
    assert cli.main(["--help"]) == 0
    assert set(cli.COMMANDS) <= set(capsys.readouterr().out.split())
    assert cli.main(["--version"]) == 0
    assert cli.main(["prone"]) == 2
    assert "got 'prone'; did you mean prune?" in capsys.readouterr().err
    assert cli.main(["xyz"]) == 2
    assert f"one of {', '.join(cli.COMMANDS)}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        cli.main(["prune", "--help"])
    assert exit_.value.code == 0


def test_score_then_cut_equals_one_run(dense, text_file, result, tmp_path):
    common = ["--base_model", str(dense()), "--dtype", "float32", "--device", "cpu"]
    text = ["--dataset", str(text_file), "--nsamples", "4", "--seq_len", "32"]
    scores = tmp_path / "scores.npz"
    assert cli.main(["score", *common, *text, "--output", str(scores)]) == 0
    cut = ["--scores", str(scores), "--pruning_ratio", "0.2", "--temperature", "0", "--skip_evaluation"]
    assert cli.main(["cut", *common, *cut, "--output_name", "out", "--results_dir", str(tmp_path)]) == 0
    one, two = (PrunePlan.read_json(folder / "prune_plan.json") for folder in (tmp_path / "out", result))
    assert one.layers == two.layers
    with pytest.raises(SystemExit, match="2"):
        cli.main(["cut", *common, "--pruning_ratio", "0.2", "--output_name", "x"])


def test_device_auto_prunes_the_same_and_evaluates(prune, result, analysis, tmp_path):
    """Accelerate's device map is used, whatever devices exist."""
    assert prune(tmp_path, "--device", "auto") == 0
    again, first = (PrunePlan.read_json(folder / "prune_plan.json") for folder in (tmp_path / "out", result))
    assert again.layers == first.layers
    report = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())
    if not torch.cuda.is_available():
        assert report["evaluation"] == analysis["evaluation"]
    assert report["environment"]["device"] == "auto"


def test_a_comma_list_calibrates_on_all_its_texts(prune, tmp_path):
    (tmp_path / "own.txt").write_text("".join(f"{number:08d}" for number in range(200)))
    code = prune(tmp_path, "--dataset", f"{tmp_path / 'own.txt'},builtin", "--nsamples", "6")
    assert code == 0
    found = json.loads(next(tmp_path.rglob("pruning_analysis.json")).read_text())["scoring"]["calibration"]
    assert found["sequences"] == 6
    assert "builtin" in found["source"]
    assert "own.txt" in found["source"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--results_dir", "file"], "file, which is not"),
        (["--spill_dir", "file"], "another with --spill_dir"),
        (["--eval_tasks", "empty.txt"], "nothing in empty.txt"),
        (["--eval_tasks", "short.txt"], "two tokens in short.txt"),
        (["--eval_seq_len", "9999"], "--eval_seq_len of at most"),
        (["--eval_tasks", "lambada"], "run_evaluation.py measures other tasks"),
        (["--scores", "missing.npz"], "missing.npz"),
    ],
)
def test_what_cannot_end_well_is_refused_before_weights_are_read(prune, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("a")
    monkeypatch.setattr("hgsp.pipeline.prune.load_for_pruning", lambda *_, **__: pytest.fail("read weights"))
    assert prune(tmp_path / "results", *flags) == 2
    assert message in capsys.readouterr().err
    assert everything_in(tmp_path) == ["empty.txt", "file", "short.txt"]


def test_overwrite_does_not_replace_a_folder_that_holds_the_model(prune, dense, tmp_path, capsys):
    shutil.copytree(dense(), tmp_path / "out" / "base")
    assert prune(tmp_path, "--overwrite", model=tmp_path / "out" / "base") == 2
    assert "out/base is in use" in capsys.readouterr().err
    assert (tmp_path / "out" / "base" / "config.json").is_file()


def test_a_folder_for_activations_is_made(prune, tmp_path):
    assert prune(tmp_path, "--skip_evaluation", "--no_bin", "--spill_dir", tmp_path / "new" / "spill") == 0
    assert everything_in(tmp_path / "new") == ["spill"]


def test_every_process_needs_a_sequence(prune, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert prune(tmp_path) == 2
    assert "expected --nsamples to be at least 8, one per process; got 4" in capsys.readouterr().err


def test_seconds_of_one_ratio_are_not_counted_for_the_next(prune, tmp_path, monkeypatch):
    genuine = checkpoint.save_pruned

    def slow_at_first(*args, **kwargs):
        if not (tmp_path / "out_10").exists():
            time.sleep(2)
        genuine(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_pruned", slow_at_first)
    assert prune(tmp_path, "--skip_evaluation", "--no_bin", "--pruning_ratio", "0.1", "0.2") == 0
    seconds = [
        json.loads((tmp_path / name / "pruning_analysis.json").read_text())["timings_s"] for name in RESULTS_OF_TWO
    ]
    assert seconds[0]["save"] > 2 > seconds[1]["save"]
    assert seconds[0]["score"] == seconds[1]["score"]
    assert seconds[1]["load"] > seconds[0]["load"]  # surgery consumed the first model


@pytest.mark.parametrize("where", ["main thread", "another"])
def test_a_polite_kill_is_an_interrupt(where, capsys):
    """A batch system sends SIGTERM at its time limit; in another thread the application's handler stays."""
    before = signal.getsignal(signal.SIGTERM)

    def run():
        if where == "another":
            return 7
        signal.raise_signal(signal.SIGTERM)
        return 0

    with ThreadPoolExecutor(1) as pool:
        code = run_guarded(run) if where == "main thread" else pool.submit(run_guarded, run).result()
    assert code == (1 if where == "main thread" else 7)
    assert ("interrupted" in capsys.readouterr().err) == (where == "main thread")
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_command_that_is_proposed_next_can_be_pasted(prune, tmp_path, capsys):
    assert prune(tmp_path / "my results", "--skip_evaluation", "--no_bin") == 0
    output = capsys.readouterr()
    line = next(line for line in (output.out + output.err).splitlines() if line.startswith("next: "))
    assert str(tmp_path / "my results" / "out") in shlex.split(line)


def test_float16_of_a_bfloat16_model_is_a_warning_in_the_report(prune, tokenizer, tmp_path):
    make_tiny("llama-8q4kv").bfloat16().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    assert prune(tmp_path, "--dtype", "float16", "--skip_evaluation", model=tmp_path / "base") == 0
    (warning,) = json.loads((tmp_path / "out" / "pruning_analysis.json").read_text())["warnings"]
    assert "overflow" in warning
