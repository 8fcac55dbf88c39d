"""``--reconstruct`` from the command line: with every way to a plan, resident and offloaded, and what is refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import make_tiny
from hgsp.cli import cut
from hgsp.models.checkpoint import load_pruned
from hgsp.pipeline import prune as pipeline
from hgsp.pruning.plan import PrunePlan
from hgsp.reconstruction.resume import ResumeState
from pruning import analysis_of, differences_in, tensors_of


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
    argv = ["--base_model", folder.parent / "llama-8q4kv", "--results_dir", folder.parent, "--output_name", "plain"]
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


@pytest.mark.parametrize(
    "flags", [["--reconstruct", "blocks"], ["--offload"], ["--reconstruct", "bias"], ["--search", "2"]]
)
def test_a_killed_reconstruction_goes_on_to_the_same_result(prune, tmp_path, monkeypatch, flags):
    _, whole = prune("whole", *flags)
    add, state_file = ResumeState.add, tmp_path / "again.reconstruction" / "finished.json"

    def killed(self, index, fits, tensors):
        add(self, index, fits, tensors)
        if index == 1 and state_file.exists():  # not in the reconstructions of the search
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResumeState, "add", killed)
        code, folder = prune("again", *flags)
    assert code == 1
    assert not folder.exists()
    assert state_file.is_file()
    code, folder = prune("again", *flags)
    assert code == 0
    assert "reconstruction: resuming after 2 layers" in (folder / "logs" / "training.log").read_text()
    expected, got = tensors_of(whole), tensors_of(folder)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert analysis_of(folder)["reconstruction"] == analysis_of(whole)["reconstruction"]
    assert not list(tmp_path.glob("again.*"))


@pytest.mark.parametrize("damage", ["removed", "cut short", "another tensor"])
def test_a_layer_whose_tensors_were_lost_is_refitted_again(prune, tmp_path, monkeypatch, damage):
    """As when a run is killed while the state of a finished one is being removed."""
    _, whole = prune("whole")

    def killed(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_result", killed)
        assert prune("again")[0] == 1
    first, second = sorted((tmp_path / "again.reconstruction").glob("model.layers.*.safetensors"))[:2]
    if damage == "removed":
        first.unlink()
    elif damage == "cut short":
        first.write_bytes(first.read_bytes()[:-8])
    else:
        first.write_bytes(second.read_bytes())
    code, folder = prune("again")
    assert code == 0
    assert "missing or damaged" in (folder / "logs" / "training.log").read_text()
    expected, got = tensors_of(whole), tensors_of(folder)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["out.reconstruction", "out.search.json"])
def test_a_result_of_the_users_where_state_would_be_kept_is_refused_and_stays(prune, tmp_path, name, capsys):
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.safetensors").write_text("mine")
    assert prune("out")[0] == 2
    assert name in capsys.readouterr().err
    assert (tmp_path / name / "model.safetensors").read_text() == "mine"


def test_a_reconstruction_of_another_plan_begins_anew(prune, tmp_path, monkeypatch):
    _, whole = prune("whole")

    def killed(self, *_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_result", killed)
        assert prune("again", "--pruning_ratio", "0.1")[0] == 1
    assert len(list((tmp_path / "again.reconstruction").iterdir())) > 2
    code, folder = prune("again")
    assert code == 0
    assert "of another model, plan or text" in (folder / "logs" / "training.log").read_text()
    expected, got = tensors_of(whole), tensors_of(folder)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama-9q3kv-tied", "bfloat16"),
        pytest.param("llama-mha-biased", "float32", marks=pytest.mark.thorough),
    ],
)
def test_whole_blocks_replace_all_of_an_mlp_offloaded_as_resident(prune, family, dtype):
    flags = ("--dtype", dtype, "--reconstruct", "blocks", "--reconstruct_nsamples", "128", "--rounds", "2")
    (code, folder), (offloaded_code, offloaded) = (
        prune("resident", *flags, family=family),
        prune("offloaded", *flags, "--offload", family=family),
    )
    assert code == offloaded_code == 0
    section = analysis_of(folder)["reconstruction"]
    assert section == analysis_of(offloaded)["reconstruction"]
    assert section["method"] == "blocks"
    blocks = [module for module in section["modules"] if module["module"] == "mlp"]
    assert len(blocks) == 3
    assert any(module["error_after"] < module["error_before"] for module in blocks)
    expected, got = tensors_of(folder), tensors_of(offloaded)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert not differences_in(folder, folder.parent / family)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama-9q3kv-tied", "qwen2-14q2kv", "qwen3-8q2kv", "llama-mha-biased"])
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
    assert not differences_in(offloaded, offloaded.parent / family)


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
    assert "(100000 wanted: the text has no more)" in (folder / "logs" / "training.log").read_text()


def test_evaluating_on_the_text_of_the_reconstruction_is_a_warning(prune, text_file):
    _, whole = prune("whole")
    _, again = prune("again", "--scores", whole / "scores.npz", "--eval_tasks", text_file)
    assert any("calibrated on the evaluation text" in warning for warning in analysis_of(again)["warnings"])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--reconstruct", "none", "--reconstruct_nsamples", "8"], "together with --reconstruct"),
        (["--reconstruct_nsamples", "1"], "--reconstruct_nsamples to be at least 2"),
        (["--reconstruct", "magic"], "one of none, bias, lstsq, blocks"),
        (["--dataset", "short.txt", "--importance_method", "random"], "at least 2 calibration sequences"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(prune, tmp_path, monkeypatch, capsys, flags, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("abcd" * 10)
    monkeypatch.setattr("hgsp.pipeline.prune.load_for_pruning", None)  # calling it would be a TypeError
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

    monkeypatch.setattr("hgsp.reconstruction.reconstruct.solve", fail)
    code, _ = prune("failed")
    assert code == 1
    assert not [path for path in tmp_path.iterdir() if path.name not in {"llama-8q4kv"} and "pytest" not in path.name]


@pytest.mark.parametrize(
    "family",
    [
        "qwen2-14q2kv",
        "llama-mha-biased",
        *(pytest.param(family, marks=pytest.mark.thorough) for family in ("llama-8q4kv", "qwen3-8q2kv")),
    ],
)
def test_bias_alone_makes_a_checkpoint_that_loads_everywhere(prune, family):
    flags = ("--reconstruct", "bias", "--rounds", "2", "--search", "2", "--search_nsamples", "4")
    (code, folder), (offloaded_code, offloaded) = (
        prune("resident", *flags, family=family),
        prune("offloaded", *flags, "--offload", family=family),
    )
    assert code == offloaded_code == 0
    report, tensors = analysis_of(folder), tensors_of(folder)
    assert report["reconstruction"]["method"] == "bias"
    assert report["params_after"] == sum(tensor.numel() for tensor in tensors.values())
    assert any(tensors[f"model.layers.{index}.mlp.down_proj.bias"].any() for index in range(3))
    in_bin = load_pruned(folder / "pruned_model.bin").state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, tensor in tensors.items():
        assert torch.equal(tensors_of(offloaded)[name], tensor)
        assert torch.equal(in_bin[name], tensor)
        assert torch.equal(loaded[name], tensor)
    assert not differences_in(folder, folder.parent / family)


@pytest.mark.parametrize("again", ["lstsq", "bias"])
def test_a_model_with_such_biases_is_pruned_again_and_frozen_layers_keep_theirs(prune, again):
    _, first = prune("first", "--reconstruct", "bias", "--skip_evaluation")
    flags = ("--base_model", first, "--pruning_ratio", "0.05", "--reconstruct", again, "--freeze_first_n_layers", "1")
    (code, resident), (offloaded_code, offloaded) = (
        prune("resident", *flags, "--skip_evaluation"),
        prune("offloaded", *flags, "--skip_evaluation", "--offload"),
    )
    assert code == offloaded_code == 0
    before, after = tensors_of(first), tensors_of(resident)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensors_of(offloaded)[name], tensor) for name, tensor in after.items())
    frozen = {name for name in before if name.startswith("model.layers.0.")}
    assert before["model.layers.0.mlp.down_proj.bias"].any()
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    assert not differences_in(resident, first)
