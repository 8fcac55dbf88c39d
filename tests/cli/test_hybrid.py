"""The commands on hybrid models, whose linear attention stays as it is, from a saved model to its reports."""

import json

import pytest

import run_global_pruning
from conftest import make_tiny
from hgsp.cli.main import main
from hgsp.models.checkpoint import load_pruned
from hgsp.models.geometry import geometry_of
from pruning import QUICK, analysis_of

REFIT = ("--reconstruct", "lstsq", "--reconstruct_nsamples", "8")
LINEAR = [True, False, True]


@pytest.fixture
def prune(saved, text_file, tmp_path):
    """``prune(*flags)`` returns the exit code and the result folder of a hybrid model."""

    def run(*flags):
        argv = {"--base_model": saved(make_tiny("qwen3.5")), "--output_name": "pruned"}
        argv |= {"--results_dir": tmp_path / "results"}
        argv |= {**QUICK, "--dataset": text_file}
        parts = [str(part) for pair in argv.items() for part in pair]
        return run_global_pruning.main([*parts, *flags]), tmp_path / "results" / "pruned"

    return run


def linear_layers(folder):
    return [shape.linear_attention for shape in geometry_of(load_pruned(folder)).shapes]


def test_kv_groups_and_channels_leave_and_linear_attention_stays(prune, capsys):
    evaluation = ("--temperature", "1", "--eval_tasks", "builtin", "--eval_max_windows", "1", "--eval_seq_len", "64")
    code, folder = prune("--pruning_ratio", "0.25", "--importance_method", "fisher", *REFIT, *evaluation)
    assert code == 0
    report, model = analysis_of(folder), load_pruned(folder)
    assert report["params_after"] == sum(parameter.numel() for parameter in model.parameters())
    assert [layer.get("kept_linear_attention") for layer in report["layers"]] == [True, None, True]
    assert [layer["num_kv_groups"] for layer in report["layers"]] == [0, 4, 0]
    assert {"linear_attn.out_proj", "self_attn.o_proj", "mlp.down_proj"} == {
        module["module"] for module in report["reconstruction"]["modules"]
    }
    capsys.readouterr()
    assert main(["verify", str(folder)]) == 0
    assert main(["report", str(folder)]) == 0
    assert main(["doctor", str(folder)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "linear attention in some layers, which was not tried here" in told
    assert "with trust_remote_code, from 5.17 on" in told


@pytest.mark.parametrize(
    "search", [(), ("--search", "2", "--search_nsamples", "4"), ("--search", "1", "--reconstruct", "bias", *REFIT[2:])]
)
def test_blocks_may_be_emptied_but_linear_attention_is_no_candidate(prune, search):
    code, folder = prune("--pruning_ratio", "0.3", "--allow_empty_blocks", "--skip_evaluation", *search)
    assert code == 0
    assert linear_layers(folder) == LINEAR
    assert analysis_of(folder)["removed_layers"] == []


def test_a_ratio_that_only_linear_attention_could_give_is_refused(prune, capsys):
    code, _ = prune("--pruning_ratio", "0.9", "--allow_empty_blocks", "--skip_evaluation")
    assert code == 2
    assert "expected a ratio of at most 0." in capsys.readouterr().err


def test_uniform_results_are_models_of_the_stock_class(prune, capsys):
    code, folder = prune("--pruning_ratio", "0.2", "--uniform", "--skip_evaluation")
    assert code == 0
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3_5_text"
    capsys.readouterr()
    assert main(["doctor", "--json", str(folder)]) == 0
    engines = {engine["engine"]: engine for engine in json.loads(capsys.readouterr().out)["engines"]}
    assert engines["Transformers"]["use"].endswith("')")
    assert engines["vLLM"]["status"] == "no"
    assert main(["export", "--to", "stock", str(folder)]) == 2
    assert "got linear attention in some layers" in capsys.readouterr().err


def test_seconds_of_linear_attention_are_not_measured(saved, capsys, tmp_path):
    folder = saved(make_tiny("qwen3.5"))
    assert main(["profile", str(folder), "--output", str(tmp_path / "table.json")]) == 2
    assert "got linear attention in 2 layers" in capsys.readouterr().err
