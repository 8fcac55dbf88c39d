"""Refits of experts that lose channels: what is lost linearly comes back, and held-out errors never grow."""

import logging

import pytest
import torch

from experts import WITH_CHANNELS, channels_plan, last_hidden, make_moe
from hgsp.data.calibration import Calibration
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.pruning.plan import LayerKeep
from hgsp.pruning.surgery import Surgery, apply_plan
from hgsp.reconstruction.reconstruct import reconstruct
from hgsp.reconstruction.resume import ResumeState
from plans import plan_of

TEXT = Calibration(torch.randint(0, 256, (16, 32), generator=torch.Generator().manual_seed(5)), "random", 5)
DOWN = "mlp.experts.down_proj"


def fits_of_experts(found):
    return [fit for fit in found.modules if fit.module == DOWN]


@pytest.mark.parametrize("name", WITH_CHANNELS)
@torch.no_grad()
def test_refits_of_experts_lower_the_error_of_the_model(name):
    model = make_moe(name)
    plan = channels_plan(model)
    found = reconstruct(Decoder(model), Surgery(model, plan), TEXT)
    fits = fits_of_experts(found)
    narrow = [index for index, keep in enumerate(plan.layers) if keep.expert_channels]
    assert [fit.layer for fit in fits] == narrow
    assert all(fit.changed and fit.error_after < fit.error_before for fit in fits)
    for fit in fits:
        keep = plan.layers[fit.layer]
        assert found.tensors[f"model.layers.{fit.layer}.{DOWN}"].shape == (
            len(keep.experts),
            64,
            len(keep.expert_slots),
        )
        assert 0 < fit.refitted_experts <= len(keep.experts) - len(fit.few_tokens)
    assert not any("gate_up_proj" in key for key in found.tensors)
    held_out, dense = TEXT.input_ids[-2:], last_hidden(Decoder(model), TEXT.input_ids[-2:])
    without = {key: tensor for key, tensor in found.tensors.items() if not key.endswith(DOWN)}
    errors = [
        (last_hidden(Decoder(apply_plan(model, plan, tensors, inplace=False)), held_out) - dense).norm()
        for tensors in (found.tensors, without, None)
    ]
    assert errors[0] < errors[1] < errors[2]


def twin_channels(model):
    """Make every second channel of every expert compute what the one before it does, on other outputs."""
    for layer in model.model.layers:
        layer.mlp.experts.gate_up_proj.data[:, 1::2] = layer.mlp.experts.gate_up_proj.data[:, 0::2]
    return model


@torch.no_grad()
def test_what_kept_channels_compute_too_comes_back(tokens):
    """Two experts serve every token, each with a loss of its own, and the router's weights are no ones."""
    model = twin_channels(make_moe("qwen3-moe", norm_topk_prob=False))
    one_of_each = (*range(0, 16, 2), 17, 19, 21, 23)
    keep = LayerKeep(tuple(range(4)), (), tuple(range(8)), tuple(range(12, 24)), (one_of_each,) * 8)
    plan = plan_of(geometry_of(model), [keep] * 3)
    found = reconstruct(Decoder(model), Surgery(model, plan), TEXT)
    for fit in fits_of_experts(found):
        assert fit.error_before > 0.1
        assert fit.error_after < 0.05 * fit.error_before


@torch.no_grad()
def test_an_expert_that_no_token_reaches_keeps_its_weights_and_is_named(caplog):
    model = make_moe("mixtral")
    router = model.model.layers[0].mlp.gate.weight.data
    router[2], router[4], router[1] = -router[0], -router[3], 0  # two others always have a larger logit than expert 1
    keep = LayerKeep((0, 1, 2, 3), (), tuple(range(8)), tuple(range(8, 24)), (tuple(range(16)),) * 8)
    plan = plan_of(geometry_of(model), [keep] * 3)
    with caplog.at_level(logging.WARNING):
        found = reconstruct(Decoder(model), Surgery(model, plan), TEXT)
    fit = fits_of_experts(found)[0]
    assert 1 in fit.few_tokens
    assert fit.refitted_experts > 0
    assert "saw too few tokens" in caplog.text
    dense = model.model.layers[0].mlp.experts.down_proj
    new = apply_plan(model, plan, found.tensors, inplace=False).model.layers[0].mlp.experts.down_proj
    for expert in fit.few_tokens:
        assert torch.equal(new[expert], dense[expert][:, :16])
    assert found.describe()["modules"][1]["few_tokens"] == fit.few_tokens
    assert "few_tokens" not in found.describe()["modules"][0]


def test_a_resumed_reconstruction_is_the_same(tmp_path):
    model = make_moe("olmoe")
    plan = channels_plan(model)
    expected = reconstruct(Decoder(model), Surgery(model, plan), TEXT)
    first = ResumeState(tmp_path / "state", "one")
    reconstruct(Decoder(model), Surgery(model, plan), TEXT, resume=first)
    again = ResumeState(tmp_path / "state", "one")
    assert all(again.fits(index) for index in range(3))
    found = reconstruct(Decoder(model), Surgery(model, plan), TEXT, resume=again)
    assert found.modules == expected.modules
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())


def test_whole_experts_keep_their_weights():
    model = make_moe("mixtral")
    shapes = geometry_of(model).shapes
    keeps = [LayerKeep((0, 1, 2), (), tuple(range(6))) for _ in shapes]
    found = reconstruct(Decoder(model), Surgery(model, plan_of(geometry_of(model), keeps)), TEXT)
    assert {fit.module for fit in found.modules} == {"self_attn.o_proj"}
