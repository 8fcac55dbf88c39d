"""The walk over the layers computes what the whole graph computes."""

import pytest
import torch

from conftest import make_tiny
from hgsp.layerwise.hidden_states import HiddenStateCache
from hgsp.layerwise.walk import LayerWalk
from hgsp.models.decoder import Decoder


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
