"""Gradient descent on one block, with targets that it can and cannot reach."""

import copy
from functools import partial

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from hgsp.reconstruction.block_fit import BlockBatches, fit_block

HIDDEN, WIDTH, BATCH = 16, 24, 256


def block_of(seed, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=HIDDEN, intermediate_size=WIDTH, num_attention_heads=2, **options)
    block = LlamaMLP(config).requires_grad_(False)
    for weight in block.parameters():
        weight.normal_(std=0.3)
    return block.to(dtype)


def batches_of(block, target_of, num_batches=16, seed=0):
    """Return normal inputs with the targets ``target_of(inputs)``; the last two batches are held out."""
    generator = torch.Generator().manual_seed(seed)
    inputs_TH = torch.randn(num_batches * BATCH, HIDDEN, generator=generator)
    inputs_TH = inputs_TH.to(next(block.parameters()).dtype)
    target_TH = target_of(inputs_TH.float()).float()
    batches = [slice(start, start + BATCH) for start in range(0, len(inputs_TH), BATCH)]
    return BlockBatches(lambda batch: (inputs_TH[batch], target_TH[batch]), batches[:-2], batches[-2:])


def changed(block, size=0.05):
    """Return the block with small random changes of all weights, in float32."""
    other, generator = copy.deepcopy(block).float(), torch.Generator().manual_seed(1)
    for weight in other.parameters():
        weight += size * torch.randn(weight.shape, generator=generator)
    return other


def energy_of(block, text):
    batches = [text.read(batch) for batch in text.held_out]
    return sum(float((block(inputs).float() - target).square().sum()) for inputs, target in batches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"mlp_bias": True}])
def test_a_reachable_target_is_reached_and_the_errors_are_those_of_the_new_block(dtype, options):
    block = block_of(0, dtype, **options)
    text, before_fit = batches_of(block, changed(block)), copy.deepcopy(block)
    before, after = fit_block(block, text, seed=7)
    assert before.energy == pytest.approx(energy_of(before_fit, text), rel=1e-5)
    assert after.energy == pytest.approx(energy_of(block, text), rel=1e-5)
    assert after.energy < 0.6 * before.energy
    assert after.relative < before.relative
    for name, weight in block.named_parameters():
        assert weight.dtype == dtype
        assert not weight.requires_grad
        assert not torch.equal(weight, before_fit.get_parameter(name))


def test_noise_leaves_the_old_weights(monkeypatch):
    """Steps that fit noise increase held-out errors, and the block stays bit for bit."""
    monkeypatch.setattr("hgsp.reconstruction.block_fit.STEP_SIZE", 1.0)
    block = block_of(0)
    text = batches_of(block, lambda inputs: block(inputs) + torch.randn(inputs.shape) * 0.1, num_batches=3)
    old = {name: (weight, weight.clone()) for name, weight in block.named_parameters()}
    before, after = fit_block(block, text, seed=7)
    assert after == before
    for name, weight in block.named_parameters():
        same_object, value = old[name]
        assert weight is same_object
        assert torch.equal(weight, value)


def test_a_block_with_the_right_output_is_not_touched():
    block = block_of(0)
    before, after = fit_block(block, batches_of(block, block), seed=7)
    assert before == after
    assert after.energy == 0


def test_old_parameters_may_be_shared():
    """They are replaced, never changed in place."""
    block = block_of(0)
    old, text = dict(block.named_parameters()), batches_of(block, changed(block))
    values = {name: weight.clone() for name, weight in old.items()}
    fit_block(block, text, seed=7)
    assert all(torch.equal(old[name], value) for name, value in values.items())
    assert all(weight is not old[name] for name, weight in block.named_parameters())


def test_tokens_of_large_energy_do_not_dominate_the_others():
    """One token in 64 has a thousand times the energy, like an attention sink; the others improve nevertheless."""

    def with_sinks(inputs, other):
        target = other(inputs)
        target[::64] *= 1000
        return target

    block = block_of(0)
    text, unfitted = batches_of(block, partial(with_sinks, other=changed(block))), copy.deepcopy(block)
    fit_block(block, text, seed=7)
    inputs_TH, target_TH = text.read(text.held_out[0])
    ordinary = torch.arange(len(inputs_TH)) % 64 != 0
    before, after = (float((model(inputs_TH) - target_TH)[ordinary].square().sum()) for model in (unfitted, block))
    assert after < 0.7 * before


def test_the_seed_orders_the_text():
    fitted = []
    for seed in (7, 7, 8):
        block = block_of(0)
        fit_block(block, batches_of(block, changed(block)), seed)
        fitted.append(block.gate_proj.weight)
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])


@pytest.mark.parametrize(("enough", "epochs"), [(5, 1), (14, 1), (15, 2), (1000, 3)])
def test_a_long_text_has_fewer_epochs(monkeypatch, enough, epochs):
    """14 batches of one step each are fitted; each is read once more for the energies of its tokens."""
    monkeypatch.setattr("hgsp.reconstruction.block_fit.MIN_STEPS", enough)
    block, reads = block_of(0), []
    text = batches_of(block, changed(block))

    def read(batch):
        reads.append(batch)
        return text.read(batch)

    fit_block(block, BlockBatches(read, text.fit, text.held_out), seed=7)
    assert [reads.count(batch) for batch in text.fit] == [1 + epochs] * 14


@pytest.mark.parametrize(("step_tokens", "rows"), [(10, 1), (32, 2), (500, 8)])
def test_steps_take_whole_sequences(monkeypatch, step_tokens, rows):
    """Of 16 tokens, and at least one of them."""
    monkeypatch.setattr("hgsp.reconstruction.block_fit.STEP_TOKENS", step_tokens)
    block = block_of(0)
    tokens, shapes = batches_of(block, changed(block), num_batches=4), []

    def read(batch):
        return tuple(values_TH.unflatten(0, (-1, 16))[:8] for values_TH in tokens.read(batch))

    block.register_forward_hook(lambda _module, args, _output: shapes.append(tuple(args[0].shape)))
    before, after = fit_block(block, BlockBatches(read, tokens.fit, tokens.held_out), seed=7)
    assert after.energy < before.energy
    assert set(shapes) == {(rows, 16, HIDDEN), (8, 16, HIDDEN)}
