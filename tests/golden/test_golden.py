"""Numbers that must not change by accident; a deliberate change is recorded and visible in the diff."""

import json

import pytest

from golden.record import GOLDEN, METHODS, MODELS, numbers

RECORDED = json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tokenizer):
    """Recorded and newly computed numbers of one model."""
    return RECORDED[request.param], numbers(request.param, tokenizer)


@pytest.mark.parametrize("method", METHODS)
def test_importances(pair, method):
    """Float32 products of some thousand terms, summed by another BLAS in another order, differ by about 1e-6; gradients
    amplify it through three layers. A changed formula differs by far more than 1e-4."""
    recorded, computed = (numbers_["importance"][method] for numbers_ in pair)
    for before, after in zip(recorded, computed, strict=True):
        for kind in ("attention", "mlp"):
            assert after[kind] == pytest.approx(before[kind], rel=1e-4)


def test_calibration_and_plan_are_the_same_to_the_last_index(pair):
    """Exact: tokens are integers, and scores near the threshold differ by more than 1e-4."""
    recorded, computed = pair
    for key in ("calibration_sha256", "plan_sha256", "removed_params"):
        assert computed[key] == recorded[key]


def test_perplexities_before_and_after(pair):
    """504 float32 losses of about 6 nats, averaged: rounding of another BLAS stays below 1e-5."""
    recorded, computed = pair
    assert computed["ppl"] == pytest.approx(recorded["ppl"], rel=1e-5)


def test_the_recording_says_where_it_comes_from():
    assert {"torch", "transformers", "numpy", "python", "machine", "recorded_with"} <= set(RECORDED["provenance"])
