"""Calling layers, blocks and head of a model one at a time."""

import copy

import torch

from hgsp.models import decoder as decoder_module
from hgsp.models.blocks import KINDS
from hgsp.models.decoder import Decoder
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


def test_the_loss_does_not_depend_on_how_many_logits_exist_at_a_time(tiny, tokens, monkeypatch):
    decoder = Decoder(tiny.requires_grad_(False))
    hidden = torch.randn(2, 24, tiny.config.hidden_size)
    loss, gradient = decoder.loss_and_gradient(hidden, tokens)
    monkeypatch.setattr(decoder_module, "MAX_LOGITS", 5 * tiny.config.vocab_size)
    pieces_loss, pieces_gradient = decoder.loss_and_gradient(hidden, tokens)
    torch.testing.assert_close(pieces_loss, loss, rtol=1e-6, atol=0)  # float32 sums in another order
    torch.testing.assert_close(pieces_gradient, gradient, rtol=1e-5, atol=1e-7)
    assert (gradient[:, -1] == 0).all()  # the last position predicts nothing
