"""``--reconstruct`` from the command line: with every way to a plan, resident and offloaded, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file

import run_global_pruning
from conftest import make_tiny
from hgsp import pipeline
from hgsp.checkpoint import load_pruned
from hgsp.commands import cut
from hgsp.selection import PrunePlan

SETTINGS = {
    "--pruning_ratio": "0.2",
    "--temperature": "0.0",
    "--nsamples": "4",
    "--seq_len": "32",
    "--reconstruct": "lstsq",
    "--reconstruct_nsamples": "48",
    "--dtype": "float32",
    "--device": "cpu",
    "--min_mlp_width": "8",
    "--eval_tasks": "builtin",
    "--eval_max_windows": "2",
    "--eval_seq_len": "64",
}


@pytest.fixture
def prune(saved, text_file, tmp_path):
    """``prune(name, *flags)`` runs the recipe on a tiny model and gives (exit code, result folder); later flags win."""
    bases = {}

    def run(name, *flags, family="llama-8q4kv", recipe=run_global_pruning.main):
        if family not in bases:
            bases[family] = saved(make_tiny(family, vocab_size=272), family, max_shard_size="60KB")
        paths = (
            "--base_model",
            bases[family],
            "--dataset",
            text_file,
            "--results_dir",
            tmp_path,
            "--output_name",
            name,
        )
        settings = [part for pair in SETTINGS.items() for part in pair]
        return recipe([str(part) for part in (*settings, *paths, *flags)]), tmp_path / name

    return run


def tensors_of(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def analysis_of(folder):
    return json.loads((folder / "pruning_analysis.json").read_text())


def test_reconstruction_replaces_writers_only_and_is_reported(prune):
    code, folder = prune("out")
    assert code == 0
    report = analysis_of(folder)
    section = report["reconstruction"]
    assert section["method"] == "lstsq"
    assert section["calibration"]["sequences"] == 48
    assert section["held_out_sequences"] == 6
    assert [module["module"] for module in section["modules"]] == ["self_attn.o_proj", "mlp.down_proj"] * 3
    assert all(module["error_after"] <= module["error_before"] for module in section["modules"])
    assert report["timings_s"]["reconstruct"] > 0
    assert not [path for path in folder.rglob("*") if "reconstructed" in path.name]
    assert report["params_after"] == sum(tensor.numel() for tensor in tensors_of(folder).values())
    refitted = {
        f"model.layers.{module['layer']}.{module['module']}.weight"
        for module in section["modules"]
        if module["ridge"] is not None
    }
    assert len(refitted) >= 2
    scores = folder / "scores.npz"
    argv = ["--base_model", report["base_model"], "--results_dir", folder.parent, "--output_name", "plain"]
    argv += ["--pruning_ratio", "0.2", "--temperature", "0.0", "--dtype", "float32", "--device", "cpu"]
    argv += ["--min_mlp_width", "8", "--scores", scores, "--skip_evaluation"]
    assert cut.main([str(part) for part in argv]) == 0
    plain, got = tensors_of(folder.parent / "plain"), tensors_of(folder)
    assert PrunePlan.read_json(folder.parent / "plain" / "prune_plan.json").layers == (
        PrunePlan.read_json(folder / "prune_plan.json").layers
    )
    assert analysis_of(folder.parent / "plain")["reconstruction"] is None
    assert "reconstruct" not in analysis_of(folder.parent / "plain")["timings_s"]
    assert {name for name in plain if not torch.equal(plain[name], got[name])} == refitted


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama-9q3kv-tied", "qwen2-14q2kv", "llama-mha-biased"])
def test_offload_equals_resident(prune, family, dtype):
    """Tensors, the .bin and perplexities; the dense model lies in several files."""
    flags = ("--dtype", dtype, "--temperature", "1.0")
    (code, resident), (offloaded_code, offloaded) = (
        prune("resident", *flags, family=family),
        prune("offloaded", *flags, "--offload", family=family),
    )
    assert code == offloaded_code == 0
    expected, got = tensors_of(resident), tensors_of(offloaded)
    in_bin = load_pruned(offloaded / "pruned_model.bin").state_dict()
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor)
        assert torch.equal(in_bin[name], tensor)
    reports = [analysis_of(folder) for folder in (resident, offloaded)]
    assert reports[0]["evaluation"] == reports[1]["evaluation"]
    assert reports[0]["reconstruction"] == reports[1]["reconstruction"]
    assert any(module["ridge"] is not None for module in reports[0]["reconstruction"]["modules"])
    assert {path.name for path in resident.iterdir()} == {path.name for path in offloaded.iterdir()}


def test_scores_from_a_file_reconstruct_the_same(prune):
    """Then the text is read for the reconstruction alone."""
    _, whole = prune("whole")
    code, again = prune("again", "--scores", whole / "scores.npz", recipe=cut.main)
    assert code == 0
    expected, got = tensors_of(whole), tensors_of(again)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert analysis_of(again)["reconstruction"] == analysis_of(whole)["reconstruction"]


def test_ratio_zero_is_the_dense_model_bit_for_bit(prune):
    code, folder = prune("zero", "--pruning_ratio", "0")
    assert code == 0
    dense = make_tiny("llama-8q4kv", vocab_size=272).state_dict()
    assert all(torch.equal(dense[name], tensor) for name, tensor in tensors_of(folder).items())
    assert analysis_of(folder)["reconstruction"]["modules"] == []


def test_several_ratios_are_each_reconstructed_from_the_dense_model(prune, tmp_path):
    assert prune("all", "--pruning_ratio", "0.1", "0.3")[0] == 0
    assert prune("alone", "--pruning_ratio", "0.3")[0] == 0
    expected, got = tensors_of(tmp_path / "alone"), tensors_of(tmp_path / "all_30")
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_a_method_without_text_reads_it_to_reconstruct_and_a_short_text_gives_what_it_has(prune, caplog):
    with caplog.at_level("INFO", "hgsp"):
        code, folder = prune("short", "--importance_method", "magnitude", "--reconstruct_nsamples", "100000")
    assert code == 0
    assert 2 < analysis_of(folder)["reconstruction"]["calibration"]["sequences"] < 1000
    assert "100000 sequences wanted" in (folder / "logs" / "training.log").read_text()


def test_evaluating_on_the_text_of_the_reconstruction_is_a_warning(prune, text_file):
    _, whole = prune("whole")
    _, again = prune("again", "--scores", whole / "scores.npz", "--eval_tasks", text_file)
    assert any("calibrated on the very text" in warning for warning in analysis_of(again)["warnings"])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--reconstruct", "none"], "together with --reconstruct"),
        (["--reconstruct_nsamples", "1"], "--reconstruct_nsamples to be at least 2"),
        (["--reconstruct", "magic"], "invalid choice"),
        (["--seq_len", "15000", "--importance_method", "random"], "at least 2 calibration sequences"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(prune, monkeypatch, capsys, flags, complaint):
    monkeypatch.setattr(pipeline, "open_model", None)  # calling it would be a TypeError
    try:
        code, folder = prune("refused", *flags)
    except SystemExit as stop:  # argparse's own way out
        code, folder = stop.code, None
    assert code == 2
    assert complaint in capsys.readouterr().err
    assert folder is None or not folder.exists()


def test_dry_run_needs_no_text(prune, capsys):
    code, folder = prune("dry", "--dry_run", "--dataset", "c4")
    assert code == 0
    assert not folder.exists()


def test_failure_while_reconstructing_leaves_nothing(prune, monkeypatch, tmp_path):
    def fail(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("hgsp.reconstruct.solve", fail)
    code, _ = prune("failed")
    assert code == 1
    assert not [path for path in tmp_path.iterdir() if path.name not in {"llama-8q4kv"} and "pytest" not in path.name]


# -------------------------------------------------------------------------------------------------------- --rounds


@pytest.mark.parametrize("method", ["taylor", "wanda", "random"])
def test_rounds_spend_the_whole_budget_and_never_bring_back_what_left(prune, monkeypatch, method):
    plans, cut_once = [], pipeline.cut

    def watched(*arguments):
        plans.append(cut_once(*arguments).plan)
        return cut_once(*arguments)

    monkeypatch.setattr(pipeline, "cut", watched)
    code, folder = prune("rounds", "--rounds", "3", "--pruning_ratio", "0.3", "--importance_method", method)
    assert code == 0
    first, second, third = ([(set(keep.kv_groups), set(keep.mlp_channels)) for keep in plan.layers] for plan in plans)
    for earlier, later in ((first, second), (second, third)):
        assert all(new[kind] <= old[kind] for old, new in zip(earlier, later, strict=True) for kind in (0, 1))
        assert earlier != later
    report = analysis_of(folder)
    assert report["scoring"]["rounds"] == 3
    assert report["reached_ratio"] == pytest.approx(0.3, abs=0.01)
    assert report["params_after"] == sum(tensor.numel() for tensor in tensors_of(folder).values())
    assert not [path for path in folder.rglob("*") if "reconstructed" in path.name]


def test_rounds_offloaded_equal_resident_and_differ_from_one_cut(prune):
    flags = ("--rounds", "2", "--pruning_ratio", "0.3")
    folders = [
        prune("resident", *flags)[1],
        prune("offloaded", *flags, "--offload")[1],
        prune("once", *flags, "--rounds", "1")[1],
    ]
    plans = [PrunePlan.read_json(folder / "prune_plan.json").layers for folder in folders]
    assert plans[0] == plans[1] != plans[2]
    expected, got = tensors_of(folders[0]), tensors_of(folders[1])
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_rounds_go_on_from_a_scores_file_with_its_method(prune):
    """The first round needs no scoring; the others score by the method of the file."""
    flags = ("--rounds", "2", "--importance_method", "fisher")
    _, whole = prune("whole", *flags)
    code, again = prune("again", "--rounds", "2", "--scores", whole / "scores.npz", recipe=cut.main)
    assert code == 0
    expected, got = tensors_of(whole), tensors_of(again)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    code, _ = prune("collapsing", *flags, "--temperature", "1.0", "--epsilon", "0.7", "--pruning_ratio", "0.3")
    assert code == 0
