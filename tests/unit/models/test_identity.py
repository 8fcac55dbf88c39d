"""The identity of weights: every value counts, and only values do."""

import pytest
import torch

from conftest import make_tiny
from hgsp.models.identity import weights_identity


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


def test_copies_in_float32_and_bfloat16_share_the_hash_of_rounded_weights():
    model = make_tiny("llama-8q4kv")
    exact, rounded = identity_of(model), identity_of(model.to(torch.bfloat16))
    assert exact.sha256 != rounded.sha256
    assert exact.bfloat16_sha256 == rounded.bfloat16_sha256
