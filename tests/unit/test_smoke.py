import torch

from hgsp.selection import LayerKeep, PrunePlan
from hgsp.surgery import apply_plan


def test_keeping_everything_is_the_identity(tiny, tokens):
    expected = tiny(tokens).logits
    layers = tuple(
        LayerKeep(
            tuple(range(layer.self_attn.k_proj.out_features // layer.self_attn.head_dim)),
            tuple(range(layer.mlp.gate_proj.out_features)),
        )
        for layer in tiny.model.layers
    )
    pruned = apply_plan(tiny, PrunePlan(layers, 0, 0))
    assert torch.equal(pruned(tokens).logits, expected)
