"""The H-GSP prior against hand-computed values, and influence against really skipping a layer or block."""

import math

import numpy as np
import pytest
import torch

from conftest import make_tiny
from hgsp.data.calibration import Calibration
from hgsp.models.decoder import Decoder
from hgsp.scoring.prior import Influence, perplexity_influence, prior_of
from hgsp.scoring.score import score_groups

TWO_LAYERS = Influence(np.array([0.1, 0.5]), np.array([0.02, 0.3]), np.array([0.05, 0.4]))


@pytest.mark.parametrize(
    ("tau", "modes", "influences"),
    [
        (None, ["layer", "block"], [[0.1, 0.1], [0.3, 0.4]]),  # the 25th percentile of 0.1 and 0.5 is 0.2
        (0.0, ["block", "block"], [[0.02, 0.05], [0.3, 0.4]]),
        (math.inf, ["layer", "layer"], [[0.1, 0.1], [0.5, 0.5]]),
        (0.1, ["block", "block"], [[0.02, 0.05], [0.3, 0.4]]),  # below tau, not at it
    ],
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_prior_of_two_layers_by_hand(tau, modes, influences, temperature):
    prior, got_modes = prior_of(TWO_LAYERS, temperature, tau)
    assert got_modes == modes
    expected = [[math.log(1 + value) ** temperature for value in layer] for layer in influences]
    np.testing.assert_allclose(prior, expected, rtol=1e-12)


def test_cosine_influence_is_the_mean_angle_over_tokens_of_layer_and_blocks(tiny):
    """Against a plain loop over hidden states, whatever the batches."""
    input_ids = torch.randint(0, 256, (3, 12))
    between = []
    for layer in tiny.model.layers:
        layer.post_attention_layernorm.register_forward_pre_hook(lambda _module, args: between.append(args[0]))
    with torch.no_grad():
        hidden = list(tiny.model(input_ids, output_hidden_states=True).hidden_states)
    found = score_groups(Decoder(tiny), "random", Calibration(input_ids, "random", 0), with_influence=True).influence
    for index in range(len(tiny.model.layers) - 1):  # the last hidden state of transformers is after the norm
        pairs = {
            "layer": (hidden[index], hidden[index + 1]),
            "attention": (hidden[index], between[index]),
            "mlp": (between[index], hidden[index + 1]),
        }
        for part, (before, after) in pairs.items():
            angles = [
                1 - float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))
                for a, b in zip(before.flatten(0, 1), after.flatten(0, 1), strict=True)
            ]
            # cosines are float32, so 1 - cos has their absolute error
            assert getattr(found, part)[index] == pytest.approx(sum(angles) / len(angles), rel=1e-4, abs=1e-6)


def test_perplexity_influence_is_the_perplexity_lost_by_really_skipping():
    model = make_tiny("llama-8q4kv")
    input_ids = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(3))

    def ppl(skip=None):
        hooks = []
        if skip is not None:
            index, part = skip
            layer = model.model.layers[index]
            if part in ("layer", "attention"):
                hooks.append(layer.self_attn.o_proj.register_forward_hook(lambda _m, _a, out: out * 0))
            if part in ("layer", "mlp"):
                hooks.append(layer.mlp.down_proj.register_forward_hook(lambda _m, _a, out: out * 0))
        with torch.no_grad():
            loss = model(input_ids, labels=input_ids).loss
        for hook in hooks:
            hook.remove()
        return math.exp(float(loss))

    found = perplexity_influence(Decoder(model), input_ids)
    assert found.measure == "perplexity"
    gains = []
    for part in ("layer", "attention", "mlp"):
        expected = [max(ppl((index, part)) - ppl(), 0.0) for index in range(3)]
        gains += expected
        # a difference of two float32 perplexities of a few hundred
        np.testing.assert_allclose(getattr(found, part), expected, rtol=1e-3, atol=1e-2)
    assert max(gains) > 1


def test_influence_is_not_measured_unless_asked_for():
    """Temperature 0 skips layer and block analysis."""
    found = score_groups(Decoder(make_tiny("llama-mqa")), "taylor", Calibration(torch.randint(0, 256, (2, 8)), "r", 0))
    assert found.influence is None
