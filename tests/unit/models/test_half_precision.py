"""Products in float32 for half precision: the same model, the same dtypes, nothing wide kept for the way back."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import hgsp.models.half_precision
from hgsp.models.half_precision import Fp32MatmulMode, emulated_dtypes, fp32_matmul_fallback

HALF = frozenset({torch.bfloat16, torch.float16})


def outcome(module, inputs):
    """Output, and gradients of everything that has one, of a sum that weighs every output differently."""
    inputs = inputs.detach().requires_grad_()
    output = module(inputs)
    (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return [output, inputs.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", sorted(HALF, key=str))
@pytest.mark.parametrize("max_widened", [1 << 24, 20])
def test_a_linear_is_that_of_float32_rounded_once(monkeypatch, bias, dtype, max_widened):
    monkeypatch.setattr(
        hgsp.models.half_precision, "MAX_CAST_VALUES", max_widened
    )  # 20: three outputs at a time, of seven
    torch.manual_seed(0)
    linear, inputs = nn.Linear(6, 7, bias=bias, dtype=dtype), torch.randn(2, 5, 6, dtype=dtype)
    expected = outcome(copy.deepcopy(linear).float(), inputs.float())
    with Fp32MatmulMode(HALF):
        found = outcome(linear, inputs)
    assert {tensor.dtype for tensor in found} == {dtype}
    tolerance = torch.finfo(dtype).eps  # output and upstream gradient are rounded, which float32 alone is not
    for own, wide in zip(found, expected, strict=True):
        torch.testing.assert_close(own.float(), wide, rtol=tolerance, atol=10 * tolerance)


def test_one_vector_is_taken_too():
    linear = nn.Linear(6, 7, dtype=torch.bfloat16)
    with Fp32MatmulMode(HALF):
        found = outcome(linear, torch.randn(6, dtype=torch.bfloat16))
    assert [tuple(tensor.shape) for tensor in found] == [(7,), (6,), (7, 6), (7,)]


def test_frozen_weights_get_no_gradient_and_no_wide_copy_is_kept():
    linear = nn.Linear(6, 7, dtype=torch.bfloat16).requires_grad_(False)
    kept = []
    inputs = torch.randn(5, 6, dtype=torch.bfloat16, requires_grad=True)
    with Fp32MatmulMode(HALF), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        linear(inputs).sum().backward()
    assert linear.weight.grad is None
    assert inputs.grad is not None
    assert kept
    assert {tensor.dtype for tensor in kept} == {torch.bfloat16}


def test_attention_is_that_of_float32_with_its_mask():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 4, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.randn(1, 1, 4, 4, dtype=torch.bfloat16)
    expected = scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask.float())
    with Fp32MatmulMode(HALF):
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.equal(found, expected.bfloat16())


def test_other_dtypes_are_left_alone():
    linear, inputs = nn.Linear(6, 7), torch.randn(5, 6)
    with Fp32MatmulMode(HALF):
        assert torch.equal(linear(inputs), nn.functional.linear(inputs, linear.weight, linear.bias))
        assert linear.double()(inputs.double()).dtype == torch.float64


@pytest.mark.parametrize("slow", [HALF, frozenset()])
def test_the_mode_is_on_only_where_the_cpu_is_slow(monkeypatch, slow):
    monkeypatch.setattr(hgsp.models.half_precision, "emulated_dtypes", lambda: slow)
    torch.manual_seed(0)
    linear, inputs = nn.Linear(64, 8, dtype=torch.bfloat16), torch.randn(5, 64, dtype=torch.bfloat16)
    seen = []
    monkeypatch.setattr(hgsp.models.half_precision._Fp32Linear, "apply", lambda *args: seen.append(args))
    with fp32_matmul_fallback():
        linear(inputs)
    assert bool(seen) == bool(slow)


def test_without_mkldnn_both_are_slow(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    emulated_dtypes.cache_clear()
    try:
        assert emulated_dtypes() == HALF
    finally:
        emulated_dtypes.cache_clear()
