"""The benchmark of what refits of single blocks restore: nothing of independent channels, everything of copies."""

import sys

import pytest
import torch
from torch import nn

from conftest import REPOSITORY, make_tiny

sys.path.append(str(REPOSITORY / "benchmarks"))
from local_refits import Part, blocks, measure, split

SEQ_LEN, CHANNELS, HIDDEN = 32, 8, 5


@pytest.fixture
def linear():
    torch.manual_seed(5)
    return nn.Linear(CHANNELS, HIDDEN, bias=False)


def measured(linear, inputs):
    """Return the errors left of an MLP without half of its channels, by way of refitting."""
    gradients = torch.randn(len(inputs), HIDDEN, generator=torch.Generator().manual_seed(6))
    return dict(measure("mlp", linear, split(Part(inputs, gradients), SEQ_LEN), columns_per_group=1))


def test_parts_share_no_sequence():
    sequence = torch.arange(8 * SEQ_LEN)[:, None] // SEQ_LEN
    parts = [set(part.inputs.flatten().tolist()) for part in split(Part(sequence, sequence), SEQ_LEN)]
    assert parts == [{0, 2, 4, 6}, {1, 5}, {3, 7}]


def test_independent_channels_cannot_be_restored(linear):
    inputs = torch.randn(64 * SEQ_LEN, CHANNELS, generator=torch.Generator().manual_seed(7))
    for error, loss in measured(linear, inputs).values():
        assert error == pytest.approx(1, abs=0.05)
        assert loss == pytest.approx(1, abs=0.05)


def test_channels_that_others_predict_are_restored(linear):
    independent = torch.randn(64 * SEQ_LEN, 3, generator=torch.Generator().manual_seed(8))
    noise = 1e-3 * torch.randn(64 * SEQ_LEN, CHANNELS, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        linear.weight *= torch.tensor([1, 1, 1, 9, 9, 9, 9, 9])  # importance keeps copies of the first channel alone
    found = measured(linear, torch.cat([independent, independent[:, :1].repeat(1, 5)], 1) + noise)
    assert min(found["least squares"]) > 0.01  # copies are restored, the second and the third channel are lost
    assert max(found["channels chosen by what others cannot predict"]) < 0.001


def test_blocks_come_with_the_gradients_of_their_outputs():
    model = make_tiny("llama-8q4kv").requires_grad_(False)
    ids = torch.randint(0, 256, (4, 16), generator=torch.Generator().manual_seed(3))
    *_, (kind, linear, tokens) = blocks(model, ids)
    outputs = []

    def keep(_module, _arguments, output):
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    with linear.register_forward_hook(keep):
        logits = model(ids, use_cache=False).logits[:, :-1]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    (expected,) = torch.autograd.grad(loss, outputs)
    assert kind == "mlp"
    torch.testing.assert_close(tokens.gradients, expected.flatten(0, 1), rtol=1e-2, atol=1e-4)  # kept in bfloat16
