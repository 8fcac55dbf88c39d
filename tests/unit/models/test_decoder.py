"""Calling layers, blocks and head of a model one at a time."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from conftest import COMMON
from hgsp.models import decoder as decoder_module
from hgsp.models.decoder import Decoder
from hgsp.models.families import FAMILIES, KINDS
from hgsp.pruning.surgery import apply_plan
from plans import mixed_plan


def stream_through(decoder, model, tokens):
    """The residual stream after every layer, called block by block, and called as a whole."""
    by_block = whole = decoder.embed(tokens)
    for layer in model.model.layers:
        for kind in KINDS:
            by_block = decoder.call_block(layer, kind, by_block)
        whole = decoder.call(layer, whole)
        yield by_block, whole


@torch.no_grad()
def test_both_blocks_in_turn_are_the_layer(tiny, tokens):
    for by_block, whole in stream_through(Decoder(tiny), tiny, tokens):
        assert torch.equal(by_block, whole)


@torch.no_grad()
def test_a_pruned_layer_is_called_with_the_arguments_of_the_dense_one(tiny, tokens):
    decoder = Decoder(tiny)
    pruned = apply_plan(copy.deepcopy(tiny), mixed_plan(tiny))
    for by_block, whole in stream_through(decoder, pruned, tokens):
        assert torch.equal(by_block, whole)
    assert torch.equal(decoder.logits(whole), pruned(tokens).logits)


def test_a_family_may_soft_cap_its_logits(tokens, monkeypatch):
    """Gemma 2 does, here with full attention in every layer and a cap far below the largest logit."""
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "layer_types": ["full_attention"] * 3}
    model = Gemma2ForCausalLM(Gemma2Config(**{**COMMON, **sizes}, final_logit_softcapping=0.5)).eval()
    gemma2 = replace(FAMILIES["llama"], model_type="gemma2", logit_softcap="final_logit_softcapping")
    monkeypatch.setitem(FAMILIES, "gemma2", gemma2)
    decoder = Decoder(model)
    hidden = decoder.embed(tokens)
    for layer in model.model.layers:
        hidden = decoder.call(layer, hidden)
    expected = model(tokens, labels=tokens).loss.item()
    assert float(decoder.loss_and_gradient(hidden, tokens)[0].sum()) / (2 * 23) == pytest.approx(
        expected, rel=1e-5
    )  # float32 sums in another order


def test_the_loss_does_not_depend_on_how_many_logits_exist_at_a_time(tiny, tokens, monkeypatch):
    decoder = Decoder(tiny.requires_grad_(False))
    hidden = torch.randn(2, 24, tiny.config.hidden_size)
    loss, gradient = decoder.loss_and_gradient(hidden, tokens)
    monkeypatch.setattr(decoder_module, "MAX_LOGITS", 5 * tiny.config.vocab_size)
    pieces_loss, pieces_gradient = decoder.loss_and_gradient(hidden, tokens)
    torch.testing.assert_close(pieces_loss, loss, rtol=1e-6, atol=0)  # float32 sums in another order
    torch.testing.assert_close(pieces_gradient, gradient, rtol=1e-5, atol=1e-7)
    assert (gradient[:, -1] == 0).all()  # the last position predicts nothing
