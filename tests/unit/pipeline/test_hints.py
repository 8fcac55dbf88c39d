"""Hints are given for settings known to be weak, with numbers that were measured."""

import json
from pathlib import Path

import pytest

from hgsp.pipeline.hints import BALANCED_PPL, DENSE_PPL, METHODS_PPL, flags_in, hint
from hgsp.pipeline.recipes import BALANCED, BEST, FAST, Recipe

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
PLAIN = Recipe(temperature=0.0)


def test_the_numbers_are_those_of_the_results_files():
    methods = json.loads((RESULTS / "methods_smollm2.json").read_text())
    measured = {(row["method"], row["temperature"], row["ratio"]): row["ppl"] for row in methods["rows"]}
    for (method, temperature), by_ratio in METHODS_PPL.items():
        assert by_ratio == {ratio: measured[method, temperature, ratio] for ratio in by_ratio}
    quality = json.loads((RESULTS / "quality_smollm2.json").read_text())
    found = {row["ratio"]: row["ppl"]["wiki.test.raw"] for row in quality["rows"] if row["way"] == "balanced"}
    assert found == BALANCED_PPL
    assert methods["dense"]["ppl"] == quality["dense"]["wiki.test.raw"] == DENSE_PPL


@pytest.mark.parametrize(
    ("recipe", "method", "ratio", "given", "parts"),
    [
        (Recipe(), "taylor", 0.25, (), ("--recipe balanced.", "37.8", "89.9", "taylor with temperature 1", "20%")),
        (PLAIN, "taylor", 0.25, ("temperature",), ("--recipe balanced instead of --temperature.", "37.8", "50.5")),
        (PLAIN, "fisher", 0.5, ("scores",), ("--recipe balanced instead of --scores.", "79.5", "305.5", "50%")),
        (PLAIN, "magnitude", 0.1, (), ("--recipe balanced", "4.228e+06", "20%")),
        (Recipe(reconstruct="lstsq"), "taylor", 0.2, (), ("use --temperature 0.", "50.5", "89.9")),
        (Recipe(), "taylor", 0.1, (), ("use --temperature 0.", "36.5", "53.5", "10%")),
    ],
)
def test_a_weak_setting_names_the_better_one_and_its_gain(recipe, method, ratio, given, parts):
    line = hint(recipe, method, ratio, given)
    assert line is not None
    assert "\n" not in line
    for part in (*parts, "SmolLM2-135M-Instruct"):
        assert part in line


@pytest.mark.parametrize(
    ("recipe", "method", "ratio", "given"),
    [
        (FAST, "fisher", 0.3, {"recipe"}),
        (Recipe(), "taylor", 0.3, {"recipe", "temperature"}),
        (BALANCED, "fisher_token", 0.2, ()),
        (BEST, "fisher_token", 0.2, ()),
        (PLAIN, "taylor", 0.1, ()),
        (Recipe(temperature=0.0, reconstruct="lstsq"), "fisher", 0.5, ()),
        (Recipe(reconstruct="lstsq"), "wanda", 0.2, ()),
        (Recipe(reconstruct="lstsq"), "fisher_token", 0.2, ()),  # not measured with the prior
        (PLAIN, "taylor", 0.7, ()),  # nothing was measured near
        (PLAIN, "random", 0.3, ()),
    ],
)
def test_no_hint_without_a_weak_setting_and_a_measurement(recipe, method, ratio, given):
    assert hint(recipe, method, ratio, given) is None


def test_flags_of_a_command_by_name():
    command = "run_global_pruning.py --pruning-ratio 0.2 --recipe=fast --output_name 'a --b'"
    assert flags_in(command) == {"pruning_ratio", "recipe", "output_name"}
