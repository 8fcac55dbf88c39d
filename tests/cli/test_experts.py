"""The commands on mixtures of experts, from a saved model to its reports."""

import csv
import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import run_global_pruning
from experts import make_moe, plan_keeping, quantise_experts, uneven_plan
from hgsp.cli.main import main
from hgsp.models.checkpoint import load_pruned, save_pruned
from hgsp.models.families import FAMILIES, family_of
from hgsp.models.geometry import geometry_of
from hgsp.models.layer_sizes import architecture_settings, layer_sizes, stored_keys
from hgsp.pruning.surgery import apply_plan
from pruning import QUICK, analysis_of


@pytest.fixture
def prune(saved, text_file, tmp_path):
    """``prune(model, *flags)`` returns the exit code and the result folder."""

    def run(model, *flags):
        argv = {"--base_model": saved(model, "dense"), "--output_name": "pruned", "--results_dir": tmp_path / "results"}
        argv |= {**QUICK, "--dataset": text_file}
        parts = [str(part) for pair in argv.items() for part in pair]
        return run_global_pruning.main([*parts, *flags]), tmp_path / "results" / "pruned"

    return run


def kept_by_kind(folder):
    kept = {}
    with (folder / "global_group_table.csv").open() as lines:
        for row in csv.DictReader(lines):
            kept.setdefault(row["kind"], []).append(int(row["kept"]))
    return kept


def test_experts_channels_and_kv_groups_leave_under_one_budget(prune):
    flags = ("--pruning_ratio", "0.35", "--importance_method", "fisher", "--score_normalization", "rank")
    refit = ("--reconstruct", "lstsq", "--reconstruct_nsamples", "8", "--skip_evaluation")
    code, folder = prune(make_moe("qwen3-moe-mixed"), *flags, *refit)
    assert code == 0
    kept, report = kept_by_kind(folder), analysis_of(folder)
    assert {kind: len(values) for kind, values in kept.items()} == {"attention": 12, "mlp": 96, "expert": 16}
    assert all(0 < sum(values) < len(values) for values in kept.values())
    model = load_pruned(folder)
    assert report["params_after"] == sum(parameter.numel() for parameter in model.parameters())
    assert [len(layer["kept_experts"]) for layer in report["layers"]] == [
        len(layer.mlp.gate.weight) if hasattr(layer.mlp, "experts") else 0 for layer in model.model.layers
    ]
    assert [entry["num_experts"] for entry in report["layers"]] == [8, 0, 8]
    assert any("experts keep their weights" in warning for warning in report["warnings"])
    assert "experts of 8" in (folder / "logs" / "training.log").read_text()
    assert main(["verify", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "KV groups and MLP channels and experts kept by layer" in page
    assert "MLP channels and experts are gone" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "qwen2-moe"])
def test_offload_writes_the_same_model(prune, name):
    model = make_moe(name)
    flags = ("--pruning_ratio", "0.3", "--importance_method", "reap", "--skip_evaluation", "--overwrite")
    _, folder = prune(model, *flags)
    expected = {name: tensor.clone() for name, tensor in load_pruned(folder).state_dict().items()}
    code, folder = prune(model, *flags, "--offload")
    assert code == 0
    assert main(["verify", str(folder)]) == 0
    for path in (folder, folder / "pruned_model.bin"):
        found = load_pruned(path).state_dict()
        assert found.keys() == expected.keys()
        assert all(bool((found[name] == expected[name]).all()) for name in expected)


def test_a_checkpoint_in_mxfp4_is_pruned_de_quantised_in_memory_and_from_files(saved, text_file, tmp_path, capsys):
    dense = saved(make_moe("gpt-oss", intermediate_size=32).to(torch.bfloat16), "dense")
    quantise_experts(dense)
    model, scores = ["--base_model", str(dense)], ["--scores", str(tmp_path / "scores.npz")]
    scoring = [*model, "--dataset", str(text_file), "--importance_method", "fisher", "--device", "cpu"]
    scoring += ["--nsamples", "2", "--seq_len", "16"]
    cutting = ["--results_dir", str(tmp_path), "--pruning_ratio", "0.3", "--skip_evaluation"]
    argv = [*scoring, *cutting]
    assert run_global_pruning.main([*argv, "--output_name", "refused"]) == 2
    assert "--dequantize" in capsys.readouterr().err
    for name, flags in (("memory", []), ("files", ["--offload"])):
        assert run_global_pruning.main([*argv, "--output_name", name, "--dequantize", *flags]) == 0
        assert main(["verify", str(tmp_path / name), *model]) == 0
    verified = capsys.readouterr().out
    assert verified.count("tensors equal it bit by bit") == verified.count("sliced one: equal within") == 2
    config = json.loads((tmp_path / "memory" / "config.json").read_text())
    assert config == json.loads((tmp_path / "files" / "config.json").read_text())
    assert "quantization_config" not in config
    assert analysis_of(tmp_path / "memory")["layers"] == analysis_of(tmp_path / "files")["layers"]
    assert main(["score", *scoring, "--output", scores[1], "--dequantize"]) == 0
    assert main(["cut", *model, *scores, *cutting, "--output_name", "cut", "--dequantize"]) == 0
    assert analysis_of(tmp_path / "cut")["layers"] == analysis_of(tmp_path / "memory")["layers"]


def test_the_doctor_names_the_engines_that_read_experts_and_exports_refuse_them(prune, capsys):
    flags = ("--pruning_ratio", "0.3", "--importance_method", "magnitude", "--skip_evaluation", "--expert_channels")
    _, folder = prune(make_moe("olmoe"), *flags)
    capsys.readouterr()
    assert main(["doctor", str(folder), "--json"]) == 0
    found = {engine["engine"]: engine for engine in json.loads(capsys.readouterr().out)["engines"]}
    assert [name for name, engine in found.items() if engine["status"] == "runs"] == [
        "Transformers + hgsp",
        "Transformers",
    ]
    assert main(["doctor", str(folder)]) == 0
    assert "a mixture of experts" in capsys.readouterr().out
    assert main(["export", str(folder), "--to", "gguf"]) == 2
    assert "mixture of experts" in capsys.readouterr().err
    assert main(["export", str(folder), "--to", "stock"]) == 2
    error = capsys.readouterr().err
    assert "experts of " in error
    assert "prune again with --uniform: 4 KV groups and " in error


@pytest.mark.parametrize("name", ["qwen2-moe", "qwen3-moe", "olmoe", "mixtral", "qwen3-moe-mixed", "gpt-oss"])
def test_a_uniform_mixture_is_exported_as_a_stock_model(name, tokenizer, tokens, tmp_path, capsys):
    """Of our own class, with sizes per layer that are all the same."""
    dense = make_moe(name)
    pruned = apply_plan(dense, uneven_plan(dense), inplace=False)
    stock = apply_plan(dense, plan_keeping(dense, dict.fromkeys(range(3), (2, 5)), {}))
    shapes = geometry_of(stock).shapes
    width_key = family_of(stock.config).experts.width
    sizes = [stored_keys(stock.config, layer_sizes(shape, 2, width_key)) for shape in shapes]
    settings = {**architecture_settings(pruned.config), "per_layer_config": dict(enumerate(sizes))}
    own = AutoModelForCausalLM.from_config(AutoConfig.for_model(pruned.config.model_type, **settings))
    own.load_state_dict(stock.state_dict())
    (tmp_path / "own").mkdir()
    save_pruned(own, tokenizer, tmp_path / "own", with_bin=False)
    assert main(["doctor", str(tmp_path / "own")]) == 0
    assert "after hgsp export --to stock" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "own"), "--to", "stock"]) == 0
    assert "log-probabilities" in capsys.readouterr().out
    config = json.loads((tmp_path / "own-stock" / "config.json").read_text())
    assert config["model_type"] == FAMILIES[config["model_type"]].model_type
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path / "own-stock", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again(tokens).logits, stock(tokens).logits)
    assert main(["verify", str(tmp_path / "own-stock")]) == 0


def test_a_family_of_experts_that_is_not_known_is_refused_with_what_is_missing(capsys, tmp_path):
    settings = {"num_hidden_layers": 2, "num_local_experts": 4, "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "phimoe", **settings}))
    argv = ["--base_model", str(tmp_path), "--output_name", "pruned", "--pruning_ratio", "0.2"]
    assert run_global_pruning.main(argv) == 2
    assert "'phimoe' (mixture of experts, its weights in fp8)" in capsys.readouterr().err


def test_a_dense_model_has_no_experts_to_lose_channels(make, saved, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = saved(make("llama-8q4kv"), "dense")
    argv = ["--base_model", str(model), "--output_name", "pruned", "--pruning_ratio", "0.2", "--expert_channels"]
    assert run_global_pruning.main(argv) == 2
    assert "expected a mixture of experts for --expert_channels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--reconstruct", "bias"), "experts have no bias"),
        (("--min_experts", "0"), "min_experts"),
        (("--expert_channels", "--cost", "macs"), "no cost of its own"),
        (("--pruning_ratio", "0.9"), "at most"),
    ],
)
def test_what_experts_exclude_is_refused_before_anything_is_written(prune, capsys, flags, reason):
    code, folder = prune(make_moe("qwen3-moe"), "--pruning_ratio", "0.2", *flags)
    assert code == 2
    assert reason in capsys.readouterr().err
    assert not folder.exists()


def test_channels_inside_experts_leave_under_the_same_budget(prune, capsys, tmp_path):
    model = make_moe("qwen3-moe-mixed")
    flags = ("--pruning_ratio", "0.45", "--importance_method", "fisher", "--score_normalization", "rank")
    code, folder = prune(model, *flags, "--expert_channels", "--skip_evaluation", "--no_bin")
    assert code == 0
    kept, report = kept_by_kind(folder), analysis_of(folder)
    assert {kind: len(rows) for kind, rows in kept.items()} == {
        "attention": 12,
        "mlp": 96,
        "expert": 16,
        "expert_channel": 48,
    }
    assert 0 < sum(kept["expert_channel"]) < 48
    pruned = load_pruned(folder)
    assert report["params_after"] == sum(parameter.numel() for parameter in pruned.parameters())
    widths = [layer.mlp.experts.down_proj.shape[2] for layer in pruned.model.layers if hasattr(layer.mlp, "experts")]
    assert [len(report["layers"][layer]["kept_expert_slots"]) for layer in (0, 2)] == widths
    assert [entry["num_expert_slots"] for entry in report["layers"]] == [24, 0, 24]
    assert "channels of each expert" in (folder / "report.html").read_text()
    assert main(["verify", str(folder), "--base_model", str(tmp_path / "dense")]) == 0
    assert "masked dense model beside the sliced one: equal" in capsys.readouterr().out
    expected = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    scores = shutil.copy(folder / "scores.npz", tmp_path)
    again = ("--scores", str(scores), "--expert_channels", "--overwrite", "--offload", "--skip_evaluation")
    code, folder = prune(model, "--pruning_ratio", "0.45", "--score_normalization", "rank", *again)
    assert code == 0
    assert all(bool((value == expected[name]).all()) for name, value in load_pruned(folder).state_dict().items())


def test_rounds_refit_experts_that_lose_channels_and_keep_to_the_budget(prune, tmp_path):
    flags = ("--pruning_ratio", "0.4", "--importance_method", "wanda", "--rounds", "2", "--skip_evaluation", "--no_bin")
    refit = ("--reconstruct", "lstsq", "--reconstruct_nsamples", "16")
    code, folder = prune(make_moe("mixtral"), *flags, *refit, "--expert_channels")
    assert code == 0
    report = analysis_of(folder)
    assert 0.36 < report["reached_ratio"] <= 0.4
    assert any(len(layer["kept_expert_slots"]) < 24 for layer in report["layers"])
    assert any("down projections of experts that lose channels" in warning for warning in report["warnings"])
    fits = [fit for fit in report["reconstruction"]["modules"] if fit["module"] == "mlp.experts.down_proj"]
    assert any(fit["refitted_experts"] for fit in fits)
    few = sum(len(fit["few_tokens"]) for fit in fits)
    assert (f"{few} experts saw too few tokens" in (folder / "report.html").read_text()) == (few > 0)
    assert main(["verify", str(folder), "--base_model", str(tmp_path / "dense")]) == 0
