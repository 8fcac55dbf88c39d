"""The walk over the layers computes what the whole graph computes."""

from dataclasses import replace

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from conftest import COMMON, make_tiny
from hgsp.layerwise import hidden_states as hidden_states
from hgsp.layerwise.hidden_states import HiddenStateCache
from hgsp.layerwise.walk import LayerWalk
from hgsp.models import decoder as layerwise
from hgsp.models.decoder import Decoder
from hgsp.models.families import FAMILIES


def run_walk(model, input_ids, **options):
    """Hidden states that leave each layer, and the gradient of each layer's first q_proj weight (sum over batches)."""
    model.requires_grad_(False)
    leaving, gradients = {}, {}
    with LayerWalk(Decoder(model), input_ids, keep_hidden_states=True, **options) as walk:
        for layer in walk.forward():
            handle = layer.module.register_forward_hook(
                lambda _module, _args, output, index=layer.index: leaving.setdefault(index, []).append(output)
            )
            layer.run()
            handle.remove()
            assert torch.is_grad_enabled()
        for layer in walk.backward():
            weight = layer.module.self_attn.q_proj.weight.requires_grad_(True)
            gradients[layer.index] = sum(grads[0] for grads in layer.run([weight]))
            weight.requires_grad_(False)
            assert torch.is_grad_enabled()
        losses = walk.losses
    return {index: torch.cat(parts) for index, parts in leaving.items()}, gradients, losses


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_forward_equals_the_hidden_states_of_the_model_bit_for_bit(tiny, batch_size, attention):
    """Layers are called as the model calls them, for every attention implementation."""
    tiny.set_attn_implementation(attention)
    input_ids = torch.randint(0, 256, (batch_size, 16))
    with torch.no_grad():
        expected = tiny.model(input_ids, output_hidden_states=True).hidden_states
    leaving, _, _ = run_walk(tiny, input_ids, batch_size=batch_size)
    for index in range(len(tiny.model.layers) - 1):  # the last hidden state of transformers is after the norm
        assert torch.equal(leaving[index], expected[index + 1])
    assert torch.equal(tiny.model.norm(leaving[len(leaving) - 1]), expected[-1])


def test_backward_equals_the_whole_graph(tiny):
    input_ids = torch.randint(0, 256, (4, 16))
    _, gradients, losses = run_walk(tiny, input_ids, batch_size=2)
    tiny.requires_grad_(True)
    logits = tiny(input_ids).logits[:, :-1].flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(logits, input_ids[:, 1:].flatten(), reduction="none").view(4, -1).sum(1)
    nll.sum().backward()
    torch.testing.assert_close(losses, nll.detach().double(), rtol=1e-5, atol=0)  # float32 sums in another order
    for index, layer in enumerate(tiny.model.layers):
        expected = layer.self_attn.q_proj.weight.grad
        # float32 sums in another order, on gradients of very different size
        torch.testing.assert_close(gradients[index], expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("num_layers", [1, 3, 4, 7])
def test_checkpointing_and_spilling_change_nothing(tmp_path, num_layers):
    """The numbers stay the same, and no file remains."""
    model = make_tiny("llama-8q4kv", num_hidden_layers=num_layers)
    input_ids = torch.randint(0, 256, (3, 12))
    _, expected, losses = run_walk(model, input_ids, batch_size=2)
    for options in ({"checkpointing": True}, {"spill_dir": tmp_path}, {"checkpointing": True, "spill_dir": tmp_path}):
        _, got, got_losses = run_walk(model, input_ids, batch_size=2, **options)
        assert torch.equal(got_losses, losses)
        assert all(torch.equal(got[index], expected[index]) for index in range(num_layers))
    assert not list(tmp_path.iterdir())


def test_checkpointing_keeps_fewer_boundaries(monkeypatch):
    model = make_tiny("llama-mqa", num_hidden_layers=9)
    most = 0
    loaded = HiddenStateCache.open

    def watch(self, index):
        nonlocal most
        array = loaded(self, index)
        most = max(most, len(self._arrays))
        return array

    monkeypatch.setattr(HiddenStateCache, "open", watch)
    input_ids = torch.randint(0, 256, (2, 8))
    run_walk(model, input_ids, batch_size=2)
    all_kept, most = most, 0
    run_walk(model, input_ids, batch_size=2, checkpointing=True)
    assert all_kept == 10
    assert most <= 6  # every third of nine, and the segment in hand


def test_activations_lie_beside_the_weights_while_a_quarter_of_what_is_free_there_holds_them(monkeypatch):
    num_bytes = 2 * 8 * 16 * 2
    monkeypatch.setattr(hidden_states, "free_bytes", lambda device: 4 * (2 * num_bytes + 1))
    arrays = HiddenStateCache(
        (2, 8, 16), torch.bfloat16, None, torch.device("meta")
    )  # in place of a GPU: not main memory
    assert [arrays.open(index).device.type for index in (0, 1, 2, 1)] == ["meta", "meta", "cpu", "meta"]
    arrays.drop(2)
    assert arrays.open(3).device.type == "cpu"
    arrays.drop(0)
    assert arrays.open(4).device.type == "meta"


def test_a_family_may_soft_cap_its_logits(tokens, monkeypatch):
    """Gemma 2 does, here with full attention in every layer and a cap far below the largest logit."""
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "layer_types": ["full_attention"] * 3}
    model = Gemma2ForCausalLM(Gemma2Config(**{**COMMON, **sizes}, final_logit_softcapping=0.5)).eval()
    gemma2 = replace(FAMILIES["llama"], model_type="gemma2", logit_softcap="final_logit_softcapping")
    monkeypatch.setitem(FAMILIES, "gemma2", gemma2)
    _, _, losses = run_walk(model, tokens, batch_size=2)
    expected = model(tokens, labels=tokens).loss.item()
    assert float(losses.sum()) / (2 * 23) == pytest.approx(expected, rel=1e-5)  # float32 sums in another order


def test_the_loss_does_not_depend_on_how_many_logits_exist_at_a_time(tiny, tokens, monkeypatch):
    decoder = Decoder(tiny.requires_grad_(False))
    hidden = torch.randn(2, 24, tiny.config.hidden_size)
    loss, gradient = decoder.loss_and_gradient(hidden, tokens)
    monkeypatch.setattr(layerwise, "MAX_LOGITS", 5 * tiny.config.vocab_size)
    pieces_loss, pieces_gradient = decoder.loss_and_gradient(hidden, tokens)
    torch.testing.assert_close(pieces_loss, loss, rtol=1e-6, atol=0)  # float32 sums in another order
    torch.testing.assert_close(pieces_gradient, gradient, rtol=1e-5, atol=1e-7)
    assert (gradient[:, -1] == 0).all()  # the last position predicts nothing
