"""Score once, cut many times: the same as scoring again."""

import csv
import json
import math
import re

import pytest

import run_global_pruning
from conftest import make_tiny
from hgsp.cli import cut, score
from hgsp.pruning.plan import PrunePlan

CALIBRATION = ["--dataset", "builtin", "--nsamples", "4", "--seq_len", "32", "--device", "cpu", "--dtype", "float32"]
QUICK = ["--skip_evaluation", "--no_bin", "--min_mlp_width", "8", "--device", "cpu", "--dtype", "float32"]


def plan_of(folder):
    return PrunePlan.read_json(folder / "prune_plan.json").layers


@pytest.mark.parametrize("settings", [("0.1", "0.0"), ("0.3", "1.0"), ("0.3", "2.5")])
def test_cutting_from_scores_equals_scoring_again(saved, tmp_path, settings, capsys):
    ratio, temperature = settings
    base, scores = str(saved(make_tiny("llama-8q4kv"))), str(tmp_path / "deep" / "scores.npz")
    assert score.main(["--base_model", base, "--output", scores, *CALIBRATION]) == 0
    common = ["--base_model", base, "--results_dir", str(tmp_path), "--pruning_ratio", ratio, *QUICK]
    common += ["--temperature", temperature]
    assert cut.main([*common, "--scores", scores, "--output_name", "cut"]) == 0
    assert run_global_pruning.main([*common, *CALIBRATION, "--output_name", "scored"]) == 0
    assert plan_of(tmp_path / "cut") == plan_of(tmp_path / "scored")
    assert score.main(["--base_model", base, "--output", scores, *CALIBRATION]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_calibration_beyond_the_models_positions_is_refused(saved, tmp_path, capsys):
    base = saved(make_tiny("llama-8q4kv", max_position_embeddings=31))
    assert score.main(["--base_model", str(base), "--output", str(tmp_path / "scores.npz"), *CALIBRATION]) == 2
    assert "--seq_len of at most 31" in capsys.readouterr().err


def test_several_ratios_in_one_run_give_the_plans_of_single_runs(saved, tmp_path):
    base = str(saved(make_tiny("llama-8q4kv")))
    common = ["--base_model", base, "--results_dir", str(tmp_path), "--temperature", "0", *CALIBRATION, *QUICK]
    assert run_global_pruning.main([*common, "--output_name", "all", "--pruning_ratio", "0.1", "0.2", "0.35"]) == 0
    for ratio, name in (("0.1", "all_10"), ("0.2", "all_20"), ("0.35", "all_35")):
        assert run_global_pruning.main([*common, "--output_name", ratio, "--pruning_ratio", ratio]) == 0
        assert plan_of(tmp_path / name) == plan_of(tmp_path / ratio)
        assert json.loads((tmp_path / name / "pruning_analysis.json").read_text())["asked_ratio"] == float(ratio)


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"seed": 1}, "other weights"),
        ({"num_hidden_layers": 2}, "other sizes"),
    ],
)
def test_scores_of_another_model_are_refused(saved, tmp_path, capsys, other, complaint):
    base, stranger = saved(make_tiny("llama-8q4kv")), saved(make_tiny("llama-8q4kv", **other), "stranger")
    scores = tmp_path / "scores.npz"
    assert score.main(["--base_model", str(base), "--output", str(scores), *CALIBRATION]) == 0
    common = ["--results_dir", str(tmp_path), "--pruning_ratio", "0.1", "--output_name", "out", *QUICK]
    assert cut.main([*common, "--base_model", str(stranger), "--scores", str(scores)]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_prior_needs_scores_with_influence_and_a_file_that_is_one(saved, tmp_path, capsys):
    base = str(saved(make_tiny("llama-8q4kv")))
    common = ["--base_model", base, "--results_dir", str(tmp_path), "--pruning_ratio", "0.1", *QUICK]
    assert run_global_pruning.main([*common, *CALIBRATION, "--temperature", "0", "--output_name", "t0"]) == 0
    scores = str(tmp_path / "t0" / "scores.npz")
    assert cut.main([*common, "--scores", scores, "--output_name", "t1", "--temperature", "1"]) == 2
    assert "scores made with --temperature 0" in capsys.readouterr().err
    (tmp_path / "broken.npz").write_bytes(b"PK not an archive")
    assert cut.main([*common, "--scores", str(tmp_path / "broken.npz"), "--output_name", "t2"]) == 2
    with pytest.raises(SystemExit, match="2"):
        cut.main([*common, "--output_name", "t3"])
    assert "expected --scores; got none" in capsys.readouterr().err


@pytest.mark.parametrize("prior", [("--temperature", "0"), ("--temperature", "1", "--epsilon", "0"), ("--rounds", "2")])
def test_depth_slopes_move_the_cut_to_early_layers(saved, tmp_path, prior):
    base = str(saved(make_tiny("llama-8q4kv")))
    common = ["--base_model", base, "--results_dir", str(tmp_path), "--pruning_ratio", "0.2", *CALIBRATION, *QUICK]
    common += ["--importance_method", "random", "--temperature", "0", *prior]
    for slope in ("0", "2", "-2"):
        assert (
            run_global_pruning.main(
                [*common, "--output_name", slope, "--depth_slope", slope, "--attention_slope", slope]
            )
            == 0
        )
        report = json.loads((tmp_path / slope / "pruning_analysis.json").read_text())
        assert report["scoring"]["depth_slope"] == float(slope)
    widths = {slope: [len(kept.mlp_channels) for kept in plan_of(tmp_path / slope)] for slope in ("0", "2", "-2")}
    assert widths["2"][0] < widths["0"][0] < widths["-2"][0]
    assert widths["2"][-1] > widths["0"][-1] > widths["-2"][-1]
    tables = ((tmp_path / slope / "global_group_table.csv").read_text().splitlines() for slope in ("0", "2"))
    for flat, sloped in zip(*map(csv.DictReader, tables), strict=True):
        exponent = 2.0 * (int(flat["layer"]) - 1)
        assert float(sloped["prior"]) == pytest.approx(float(flat["prior"]) * math.exp(exponent), rel=1e-12)


def test_what_scores_settle_is_said_when_something_else_was_asked_for(saved, tmp_path):
    base, scores = str(saved(make_tiny("llama-8q4kv"))), str(tmp_path / "scores.npz")
    assert score.main(["--base_model", base, "--output", scores, "--importance_method", "wanda", *CALIBRATION]) == 0
    common = [
        "--base_model",
        base,
        "--scores",
        scores,
        "--results_dir",
        str(tmp_path),
        "--pruning_ratio",
        "0.1",
        *QUICK,
    ]
    asked = {
        "nothing": [],
        "the same": ["--importance_method", "wanda", "--labels", "text"],
        "another": ["--importance_method", "fisher", "--labels", "model", "--layer_importance", "perplexity"],
        "without a prior": ["--layer_importance", "perplexity", "--temperature", "0"],
    }
    for name, flags in asked.items():
        assert cut.main([*common, "--output_name", name, *flags]) == 0
    reports = {name: json.loads((tmp_path / name / "pruning_analysis.json").read_text()) for name in asked}
    assert [len(reports[name]["warnings"]) for name in asked] == [0, 0, 3, 0]
    assert "made with --importance_method wanda: fisher, which was asked for" in reports["another"]["warnings"][0]
    assert plan_of(tmp_path / "another") == plan_of(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("output", "message"),
    [("folder", "to be a file"), ("file/scores.npz", "file, which is not"), ("scores.npz", "scores.npz exists")],
)
def test_scores_that_could_not_be_written_are_refused_before_weights_are_read(
    saved, tmp_path, monkeypatch, capsys, output, message
):
    base = saved(make_tiny("llama-8q4kv"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "scores.npz").touch()
    monkeypatch.setattr("hgsp.pipeline.prune.load_for_pruning", lambda *_, **__: pytest.fail("read weights"))
    overwrite = ["--overwrite"] if output != "scores.npz" else []
    assert score.main(["--base_model", str(base), "--output", str(tmp_path / output), *CALIBRATION, *overwrite]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_shows_every_ratio(saved, tmp_path, capsys):
    base, scores = str(saved(make_tiny("llama-8q4kv"))), str(tmp_path / "scores.npz")
    assert score.main(["--base_model", base, "--output", scores, *CALIBRATION]) == 0
    flags = [
        "--results_dir",
        str(tmp_path),
        "--output_name",
        "out",
        "--pruning_ratio",
        "0.1",
        "0.3",
        "--dry_run",
        *QUICK,
    ]
    capsys.readouterr()
    assert cut.main(["--base_model", base, "--scores", scores, "--temperature", "0", *flags]) == 0
    removed = re.findall(r"(\d+)\.\d+% of all", capsys.readouterr().out)
    assert [
        int(percent) in (tenths * 10 - 1, tenths * 10) for percent, tenths in zip(removed, (1, 3), strict=True)
    ] == [
        True,
        True,
    ]
