"""``--search`` and ``--recipe`` from the command line."""

import pytest
import torch

import run_global_pruning
from hgsp.console.flags import parse
from hgsp.console.state_files import read_state
from hgsp.pipeline.config import PruneConfig
from hgsp.pruning.plan import PrunePlan
from hgsp.search.search import SearchState
from pruning import analysis_of, differences_in, tensors_of

SEARCH = ("--search", "4", "--search_nsamples", "6", "--pruning_ratio", "0.3")


def plan_of(folder):
    return PrunePlan.read_json(folder / "prune_plan.json").layers


@pytest.mark.parametrize(("reconstruction", "proposals"), [("lstsq", "ProfileMoves"), ("none", "GradientMoves")])
def test_search_lowers_the_divergence_at_the_same_size_and_is_reported(prune, tmp_path, reconstruction, proposals):
    code, folder = prune("out", *SEARCH, "--reconstruct", reconstruction)
    assert code == 0
    report = analysis_of(folder)
    found = report["search"]
    assert found["moves"] == proposals
    assert found["steps"] == len(found["kl_of_steps"]) == 4
    assert found["kl_after"] == min(found["kl_before"], *found["kl_of_steps"])
    assert found["kl_after"] < found["kl_before"]
    assert found["calibration"]["sequences"] == 6
    assert report["timings_s"]["search"] > 0
    assert (report["reconstruction"] is None) == (reconstruction == "none")
    _, plain = prune("plain", *SEARCH[-2:])
    assert analysis_of(plain)["search"] is None
    assert plan_of(plain) != plan_of(folder)
    assert abs(analysis_of(plain)["params_after"] - report["params_after"]) < 3 * 64  # one channel
    assert not list(tmp_path.glob("*.search.json"))


FAMILIES = ("llama-8q4kv", "qwen2-14q2kv", "qwen3-8q2kv")
COMBINED = (
    ("--temperature", "1.0", "--epsilon", "0.6"),
    ("--rounds", "2"),
    ("--freeze_first_n_layers", "1", "--pruning_ratio", "0.2"),
    ("--importance_method", "wanda"),
    ("--reconstruct", "none"),
    ("--reconstruct", "blocks"),
)


@pytest.mark.parametrize(
    ("family", "flags"),
    [
        pytest.param(family, flags, marks=() if number % 3 == place else pytest.mark.thorough)
        for number, flags in enumerate(COMBINED)
        for place, family in enumerate(FAMILIES)
    ],
)
def test_it_composes_and_offloaded_equals_resident(prune, family, flags):
    flags = (*SEARCH, *flags)
    (code, resident), (offloaded_code, offloaded) = (
        prune("resident", *flags, family=family),
        prune("offloaded", *flags, "--offload", family=family),
    )
    assert code == offloaded_code == 0
    expected, got = tensors_of(resident), tensors_of(offloaded)
    assert expected.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    report = analysis_of(resident)
    assert report["params_after"] == sum(tensor.numel() for tensor in expected.values())
    if "--freeze_first_n_layers" in flags:
        assert report["layers"][0]["kept_ratio"] == 1
    assert not differences_in(resident, resident.parent / family)


def test_a_killed_search_goes_on_to_the_same_result(prune, tmp_path, monkeypatch, capsys):
    _, whole = prune("whole", *SEARCH)
    write = SearchState.write

    def killed(state, path):
        write(state, path)
        if state.steps == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SearchState, "write", killed)
        code, folder = prune("again", *SEARCH)
    assert code == 1
    assert not folder.exists()
    assert read_state(tmp_path / "again.search.json", "search", SearchState).accepted
    code, folder = prune("again", *SEARCH)
    assert code == 0
    assert "resuming after step 2" in (folder / "logs" / "training.log").read_text()
    expected, got = tensors_of(whole), tensors_of(folder)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert analysis_of(folder)["search"] == analysis_of(whole)["search"]
    assert not (tmp_path / "again.search.json").exists()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--search", "-1"], "--search to be at least 0"),
        (["--search_nsamples", "4"], "together with --search"),
        (["--search", "2", "--search_nsamples", "0"], "--search_nsamples to be at least 1"),
        (["--search", "2", "--search_nsamples", "2"], "at least 3 calibration sequences to search with"),
        (["--rounds", "0"], "--rounds to be at least 1"),
        (["--recipe", "magic"], "one of fast, balanced, best"),
    ],
)
def test_what_cannot_be_is_refused_before_weights_are_loaded(prune, monkeypatch, capsys, flags, complaint):
    monkeypatch.setattr("hgsp.pipeline.prune.load_for_pruning", None)  # calling it would be a TypeError
    try:
        code, _ = prune("refused", *flags)
    except SystemExit as stop:  # argparse's own way out
        code = stop.code
    assert code == 2
    assert complaint in capsys.readouterr().err


REQUIRED = ["--base_model", "M", "--output_name", "o", "--pruning_ratio", "0.2"]


@pytest.mark.parametrize("name", PruneConfig.PRESETS["recipe"])
def test_a_recipe_is_its_flags_and_flags_beside_it_win(name):
    flags = [part for flag, value in PruneConfig.PRESETS["recipe"][name].items() for part in (f"--{flag}", str(value))]
    by_flags = parse(PruneConfig, [*REQUIRED, *flags], prog=None, description="")
    assert parse(PruneConfig, [*REQUIRED, "--recipe", name], prog=None, description="") == by_flags
    other = parse(PruneConfig, ["--importance_method", "flap", "--recipe", name, *REQUIRED], prog=None, description="")
    assert other.importance_method == "flap"
    assert other.temperature == 0


def test_without_a_recipe_the_defaults_are_those_of_the_contract():
    config = parse(PruneConfig, REQUIRED, prog=None, description="")
    assert (config.importance_method, config.temperature, config.reconstruct, config.search, config.rounds) == (
        *("taylor", 1.0, "none", 0, 1),
    )


def test_recipes_from_the_command_line(saved, make, text_file, tmp_path):
    argv = ["--base_model", str(saved(make("llama-8q4kv"), "dense")), "--dataset", text_file, "--recipe", "best"]
    argv += ["--output_name", "best", "--results_dir", tmp_path, "--pruning_ratio", "0.2", "--nsamples", "4"]
    argv += ["--seq_len", "32", "--min_mlp_width", "8", "--device", "cpu", "--skip_evaluation", "--search", "2"]
    argv += ["--reconstruct_nsamples", "64"]
    assert run_global_pruning.main([str(part) for part in argv]) == 0
    report = analysis_of(tmp_path / "best")
    assert report["importance_method"] == "fisher_token"
    assert (report["scoring"]["depth_slope"], report["scoring"]["attention_slope"]) == (0.5, 1.0)
    assert report["search"]["steps"] == 2
    assert report["reconstruction"]["method"] == "blocks"
