"""The zero-padded model computes what the pruned model computes, and scores every group of the dense one."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from hgsp.data.calibration import Calibration
from hgsp.models.decoder import Decoder
from hgsp.models.geometry import geometry_of
from hgsp.pruning.select import kept_mask
from hgsp.pruning.surgery import Surgery, apply_plan
from hgsp.pruning.zero_padded import zero_padded_decoder
from hgsp.reconstruction.reconstruct import ReconstructionOptions, reconstruct
from hgsp.scoring.groups import build_group_table
from hgsp.scoring.methods import METHODS
from hgsp.scoring.score import score_groups
from plans import mixed_plan, plan_dropping

IDS = torch.randint(0, 256, (6, 24), generator=torch.Generator().manual_seed(3))
TEXT = Calibration(IDS, "random bytes", 3)
LONGER = Calibration(torch.randint(0, 256, (64, 32), generator=torch.Generator().manual_seed(4)), "random bytes", 4)


def zero_padded_and_pruned(model, plan, *, reconstructed=True):
    """Return the zero-padded decoder and the pruned model."""
    dense = Decoder(model)
    surgery = Surgery(model, plan)
    tensors = {}
    if reconstructed:
        options = ReconstructionOptions("bias" if plan.writer_bias else "lstsq")
        tensors = reconstruct(dense, surgery, LONGER, options).tensors
        assert tensors
    return zero_padded_decoder(dense, surgery.replacing(tensors)), apply_plan(copy.deepcopy(model), plan, tensors)


@torch.no_grad()
def last_hidden(decoder):
    hidden = decoder.embed(IDS)
    for index in range(decoder.num_layers):
        with decoder.layer(index) as module:
            hidden = decoder.call(module, hidden)
    return decoder.model.model.norm(hidden)


@pytest.mark.parametrize("reconstructed", [False, True, "bias"])
def test_it_computes_what_the_pruned_model_computes(tiny, reconstructed):
    before = copy.deepcopy(tiny.state_dict())
    decoder, pruned = zero_padded_and_pruned(
        tiny, replace(mixed_plan(tiny), writer_bias=reconstructed == "bias"), reconstructed=reconstructed
    )
    with torch.no_grad():
        expected = pruned.model(IDS).last_hidden_state
    torch.testing.assert_close(last_hidden(decoder), expected, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.state_dict().items())


@pytest.mark.parametrize("method", [name for name in METHODS if name != "random"])
def test_dropped_groups_score_zero_and_the_others_as_in_the_pruned_model(tiny, method):
    plan = mixed_plan(tiny)
    decoder, pruned = zero_padded_and_pruned(tiny, plan, reconstructed=True)
    found = score_groups(decoder, method, TEXT).by_layer
    table = build_group_table(found, geometry_of(tiny))
    kept = kept_mask(table, plan)
    assert (table.importance[~kept] == 0).all()
    assert (table.importance[kept] > 0).all()
    own = score_groups(Decoder(pruned), method, TEXT).by_layer
    for index, (wide, narrow) in enumerate(zip(found, own, strict=True)):
        for kind in ("attention", "mlp"):
            np.testing.assert_allclose(wide[kind][wide[kind] > 0], narrow[kind], rtol=2e-3, err_msg=f"{index} {kind}")


def test_removed_layers_and_blocks(make):
    model = make("llama-8q4kv", num_hidden_layers=4)
    plan = plan_dropping(model, layers=[1], kv={0: range(4)}, mlp={2: range(96), 3: range(10)})
    decoder, pruned = zero_padded_and_pruned(model, plan, reconstructed=True)
    with torch.no_grad():
        expected = pruned.model(IDS).last_hidden_state
    torch.testing.assert_close(last_hidden(decoder), expected, atol=1e-5, rtol=1e-4)


def test_an_interrupted_layer_is_restored(make):
    model = make("llama-8q4kv")
    before, parameters = copy.deepcopy(model.state_dict()), dict(model.named_parameters())
    decoder, _ = zero_padded_and_pruned(model, mixed_plan(model), reconstructed=False)
    with pytest.raises(KeyboardInterrupt), decoder.layer(0):
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
