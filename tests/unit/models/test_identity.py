"""The identity of weights: every value counts, and only values do."""

import hashlib
import os
from dataclasses import asdict

import pytest
import torch

from conftest import make_tiny
from hgsp.models.identity import files_sha256, weights_identity

DTYPES = ("float32", "bfloat16", "float16")


def identity_of(model):
    weights = dict(model.named_parameters())
    return weights_identity(weights, weights.__getitem__)


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight", "model.norm.weight"]
)
@pytest.mark.parametrize("position", [0, -1])
def test_one_changed_value_anywhere_changes_it(name, position):
    model = make_tiny("llama-8q4kv")
    before = identity_of(model)
    model.get_parameter(name).data.view(-1)[position] += 1
    after = identity_of(model)
    assert before.sha256 != after.sha256
    assert before.bfloat16_sha256 != after.bfloat16_sha256


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("one", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_one_model_in_two_dtypes_is_recognised_where_one_of_them_keeps_its_values(stored, one, other):
    def used_in(dtype):
        return identity_of(make_tiny("llama-8q4kv").to(getattr(torch, stored)).to(getattr(torch, dtype)))

    known = one == other or stored in (one, other) or "float32" in (one, other)
    assert used_in(other).is_of(asdict(used_in(one)), one, other) == known


def test_files_are_known_by_content_and_a_second_copy_of_the_weights_does_not_count(tmp_path):
    (tmp_path / "model.safetensors").write_text("weights")
    (tmp_path / "config.json").write_text("{}")
    before = files_sha256(tmp_path)
    (tmp_path / "pruned_model.bin").write_text("weights")
    os.utime(tmp_path / "config.json", (1, 1))
    assert files_sha256(tmp_path) == before
    (tmp_path / "config.json").write_text("[]")
    assert files_sha256(tmp_path) != before
    assert files_sha256(tmp_path / "model.safetensors") == hashlib.sha256(b"weights").hexdigest()
