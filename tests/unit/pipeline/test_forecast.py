"""Forecasts of time, memory and disk, from shapes and amounts of text alone."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import REPOSITORY, make_tiny
from hgsp.data.calibration import Calibration
from hgsp.errors import InputError
from hgsp.models.geometry import geometry_of
from hgsp.pipeline.calibrations import Calibrations
from hgsp.pipeline.config import ScoringConfig
from hgsp.pipeline.disk import DiskNeed, disk_need, recovery_disk_need, refitted_params
from hgsp.pipeline.forecast import Speed, check_spill, measure_speed, peak_bytes, seconds_of_stages
from hgsp.pipeline.recipes import BALANCED, BEST, FAST
from hgsp.pruning.budget import Budget

sys.path.append(str(REPOSITORY / "benchmarks"))
from shapes import config_of

RESULTS = REPOSITORY / "benchmarks" / "results"
SPEED = Speed(1e9, 5e8, 1e8)
GEOMETRY = geometry_of(make_tiny("llama-8q4kv"))


def text(num_sequences):
    return Calibration(torch.arange(num_sequences * 32).view(num_sequences, 32), "made", 0)


def seconds(recipe, *numbers, evaluated=0, **options):
    drawn = Calibrations(*(None if number is None else text(number) for number in numbers))
    return seconds_of_stages(GEOMETRY, recipe, drawn, evaluated, SPEED, **options)


def test_only_stages_of_the_recipe_are_listed():
    assert seconds(FAST, 8).keys() == {"score"}
    assert seconds(BALANCED, 8, None, 8, evaluated=64).keys() == {"score", "reconstruct", "evaluate"}
    searching = replace(BEST, search=10)
    assert seconds(searching, None, 8, 8, empties_blocks=True).keys() == {"search", "whole blocks", "reconstruct"}


def test_time_grows_with_text_results_rounds_and_steps():
    assert seconds(FAST, 16)["score"] == pytest.approx(2 * seconds(FAST, 8)["score"])
    once = seconds(BALANCED, 8, None, 8, evaluated=64)
    thrice = seconds(BALANCED, 8, None, 8, evaluated=64, num_results=3)
    assert (thrice["score"], thrice["reconstruct"]) == (once["score"], pytest.approx(3 * once["reconstruct"]))
    assert thrice["evaluate"] == pytest.approx(2 * once["evaluate"])  # before, and three times after
    two_rounds = seconds(replace(BALANCED, rounds=2), 8, None, 8)
    assert two_rounds["reconstruct"] == pytest.approx(2 * once["reconstruct"])
    short, long = (seconds(replace(BEST, search=steps), None, 8)["search"] for steps in (10, 21))
    assert long == pytest.approx(2 * short)
    assert seconds(BEST, None, None, 8)["reconstruct"] > once["reconstruct"]  # whole blocks by gradient descent


def test_the_device_is_timed_in_every_dtype():
    speed = measure_speed("cpu", "bfloat16")
    assert min(speed.half, speed.single, speed.double) > 1e6


def need(**changes):
    options = {"with_bin": True, "recovers": False, **changes}
    return disk_need(GEOMETRY, [Budget(1000), Budget(2000)], 2, Path("not/there/yet"), **options)


def test_the_disk_of_results_counts_every_copy_of_the_weights():
    both = 2 * (2 * GEOMETRY.total_params - 3000)
    once = need(with_bin=False)
    assert once.saved_by_no_bin == 0
    assert need().needed - once.needed == need().saved_by_no_bin == both
    assert need(recovers=True).needed - need().needed == 2 * both
    assert once.free > 0


@pytest.mark.parametrize(
    ("free", "remedy"),
    [(60, "--no_bin saves 50 B, enough; or free space"), (40, "--no_bin saves 50 B, which still needs 50 B; or free")],
)
def test_a_small_disk_is_refused_with_the_saving_of_leaving_the_bin_out(free, remedy):
    with pytest.raises(InputError, match="expected 100 B of free disk for the results in results") as refusal:
        DiskNeed(100, 50, free).check(Path("results"), "--results_dir")
    assert remedy in str(refusal.value)
    DiskNeed(100, 50, 100).check(Path("results"), "--results_dir")


def test_a_recovered_model_takes_what_the_pruned_one_does(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "pruned_model.bin").write_bytes(bytes(1000))
    for model in (tmp_path, tmp_path / "pruned_model.bin"):
        found = recovery_disk_need(model, tmp_path / "out", with_bin=True, trains_all=False)
        assert (found.needed, found.saved_by_no_bin) == (2000, 1000)
    assert recovery_disk_need(tmp_path, tmp_path, with_bin=True, trains_all=True).needed == 2000 + 18 * 1000
    assert recovery_disk_need(Path("org/model"), tmp_path, with_bin=True, trains_all=False).needed == 0


def test_the_state_of_a_reconstruction_is_counted():
    width = sum(shape.mlp_width for shape in GEOMETRY.shapes)
    heads = sum(GEOMETRY.columns_per_group("attention") * shape.num_kv_groups for shape in GEOMETRY.shapes)
    projections = (width + heads) * GEOMETRY.hidden_size
    assert refitted_params(GEOMETRY, "none") == 0
    assert refitted_params(GEOMETRY, "lstsq") == projections
    blocks = sum(GEOMETRY.layer_params(shape) - 2 * GEOMETRY.hidden_size for shape in GEOMETRY.shapes)  # no norms
    assert refitted_params(GEOMETRY, "blocks") == projections + blocks
    assert need(reconstruct="lstsq").needed - need().needed == 2 * projections


def test_a_spill_folder_that_is_too_small_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    config = SimpleNamespace(
        importance_method="taylor", use_gradient_checkpointing=False, spill_dir=str(tmp_path), dtype="bfloat16"
    )
    calibration = SimpleNamespace(input_ids=torch.zeros(4, 8))
    with pytest.raises(InputError, match=r"free disk for hidden states; got 1 kB.*--spill_dir"):
        check_spill(config, GEOMETRY, Calibrations(scoring=calibration))
    check_spill(config, GEOMETRY, Calibrations())
    config.spill_dir = None
    check_spill(config, GEOMETRY, Calibrations(scoring=calibration))


@pytest.mark.parametrize("measured", sorted(RESULTS.glob("full_size_*.json")), ids=lambda path: path.stem)
def test_memory_of_offloaded_pruning_is_within_a_third_of_what_was_measured(measured):
    found = json.loads(measured.read_text())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(found["model"], num_hidden_layers=found["layers"]))
    request = SimpleNamespace(
        geometry=geometry_of(model),
        config=ScoringConfig(base_model="", dtype="bfloat16", offload=True, spill_dir=None, batch_size=4, seq_len=64),
        source=SimpleNamespace(config=model.config),
    )
    calibration = Calibration(torch.zeros(4, found["tokens"] // 4, dtype=torch.int64), "made", 0)
    forecast = peak_bytes(request, Calibrations(scoring=calibration), None)
    assert forecast == pytest.approx(found["pruning_peak_rss_bytes"], rel=1 / 3)
