"""A float32 fallback for half-precision matrix products on CPUs without instructions for them.

Such CPUs (usually AVX2 and older) take ten times as long for a bfloat16 product as for a float32 one. Inputs, weights
and outputs keep their dtype, and only a part of a weight is cast at a time to bound memory. Products accumulate in
float32, as they do in hardware with half precision.

I inputs of a Linear | O outputs
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

#: Weights cast at a time: 64 MiB in float32.
MAX_CAST_VALUES = 1 << 24


@contextmanager
def fp32_matmul_fallback() -> Iterator[None]:
    """Compute Linears and attention in float32 where the CPU emulates half precision. Context manager or decorator."""
    if slow := emulated_dtypes():
        with Fp32MatmulMode(slow):
            yield
    else:
        yield


@cache
def emulated_dtypes() -> frozenset[torch.dtype]:
    """Return the half-precision dtypes that this CPU has no instructions for."""
    if not torch.backends.mkldnn.is_available():
        return frozenset({torch.bfloat16, torch.float16})
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return frozenset(dtype for dtype, has_instructions in supported.items() if not has_instructions())


class Fp32MatmulMode(TorchFunctionMode):
    """Computes Linears and attention on the CPU in float32 if their dtype is one of ``dtypes``."""

    def __init__(self, dtypes: Collection[torch.dtype]) -> None:
        super().__init__()
        self._dtypes = dtypes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is linear and all(map(self._is_slow, args[:2])):
            return _Fp32Linear.apply(*args, *[None] * (3 - len(args)), **kwargs)
        if func is scaled_dot_product_attention and all(map(self._is_slow, args[:3])):
            cast = {name: _float32(value) for name, value in kwargs.items()}
            return func(*map(_float32, args), **cast).to(args[0].dtype)
        return func(*args, **kwargs)

    def _is_slow(self, tensor: Tensor) -> bool:
        return tensor.is_cpu and tensor.dtype in self._dtypes


class _Fp32Linear(torch.autograd.Function):
    """A linear layer in float32; backward casts the weight again instead of keeping the float32 copy."""

    @staticmethod
    def forward(ctx: Any, input_I: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(input_I, weight_OI)
        float_I = input_I.float()
        parts = [linear(float_I, part.float()) for part in _parts(weight_OI)]
        output_O = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        return (output_O if bias_O is None else output_O.add_(bias_O)).to(input_I.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        input_I, weight_OI = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        input_gradient = weight_gradient = bias_gradient = None
        output_TO = upstream[0].reshape(-1, len(weight_OI)).float()
        if wants_input:
            total_TI = torch.zeros(len(output_TO), weight_OI.shape[1])
            for piece_TO, part_OI in zip(output_TO.split(_rows(weight_OI), dim=1), _parts(weight_OI), strict=True):
                total_TI.addmm_(piece_TO, part_OI.float())
            input_gradient = total_TI.view_as(input_I).to(input_I.dtype)
        if wants_weight:
            weight_gradient = (output_TO.T @ input_I.reshape(len(output_TO), -1).float()).to(weight_OI.dtype)
        if wants_bias:
            bias_gradient = output_TO.sum(0).to(upstream[0].dtype)
        return input_gradient, weight_gradient, bias_gradient


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _rows(weight_OI: Tensor) -> int:
    return max(1, MAX_CAST_VALUES // weight_OI.shape[1])


def _parts(weight_OI: Tensor) -> tuple[Tensor, ...]:
    return weight_OI.split(_rows(weight_OI))
