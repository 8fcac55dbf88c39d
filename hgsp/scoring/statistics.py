"""Per-layer statistics that importance methods need, gathered during a walk through the decoder.

All are float32 and independent of the batch size: sums over calibration tokens or sequences, which ``finish`` adds over
processes and divides by their count. A mask is a factor on all input columns of a group; its gradient at a token is the
sum over these columns of input times input gradient, and for a sequence the sum over its tokens.

The matrices of experts have one more dimension in front, [E]; where their channels are scored, so have the statistics
of outputs and masks of channels, [E, G] beside ``down_proj``. A token that the router does not send to an expert is an
input of zeros to it, and the input of its output projection is multiplied by the router's weight.

B batch | T tokens of a sequence | I in_features | O out_features | G groups | E experts

| name                   | shape  | meaning                                                                 | pass     |
|------------------------|--------|-------------------------------------------------------------------------|----------|
| ``input_sq``           | [I]    | mean over tokens of the squared input of a Linear                       | forward  |
| ``input_mean``         | [I]    | mean over tokens of that input                                          | forward  |
| ``output_norm``        | [G]    | mean over tokens of the norm of a group's output                        | forward  |
| ``reached``            | [G]    | fraction of the tokens that reach a group: all, or those routed to it   | forward  |
| ``grad``               | [O, I] | gradient of the calibration loss, mean over sequences of token means    | backward |
| ``grad_sq``            | [O, I] | mean over sequences of the squared gradient of one sequence's mean loss | backward |
| ``mask_grad_sq``       | [G]    | mean over sequences of the squared gradient of a mask, of the same loss | backward |
| ``mask_grad_token_sq`` | [G]    | mean over sequences of the sum over tokens of a mask's squared gradient | backward |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from hgsp.errors import not_finite
from hgsp.layerwise.distributed import Share, sum_over_processes
from hgsp.layerwise.walk import BackwardPass, ForwardPass
from hgsp.models.blocks import head_parameters
from hgsp.models.decoder import watch_inputs, weight_not_finite
from hgsp.models.experts import (
    DOWN,
    EXPERTS,
    RoutedCall,
    expert_parameters,
    has_experts,
    watch_expert_outputs,
    watch_experts,
)
from hgsp.scoring.expert_statistics import (
    output_norms,
    sums_of_experts,
    watch_channel_gradients,
    watch_mask_gradients,
)

INPUT_STATISTICS = frozenset({"input_sq", "input_mean"})
OUTPUT_STATISTICS = frozenset({"output_norm", "reached"})
FORWARD_STATISTICS = INPUT_STATISTICS | OUTPUT_STATISTICS
WEIGHT_GRADIENTS = frozenset({"grad", "grad_sq"})
MASK_GRADIENTS = frozenset({"mask_grad_sq", "mask_grad_token_sq"})
BACKWARD_STATISTICS = WEIGHT_GRADIENTS | MASK_GRADIENTS


@dataclass
class LayerStatistics:
    """Statistics of one layer, ``values[linear][name]``; gradients of a bias under ``linear + ".bias"``."""

    index: int
    module: nn.Module
    values: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def add(self, key: str, name: str, amount: Tensor, factor: float = 1.0) -> None:
        """Add ``factor * amount`` in place to a float32 sum."""
        sums = self.values.setdefault(key, {})
        if name in sums:
            sums[name].add_(amount, alpha=factor)
        else:
            sums[name] = amount.to(torch.float32, copy=True).mul_(factor)

    def finish(self, counts: Mapping[str, int]) -> None:
        """Add the sums over processes and divide each by its count.

        Raises:
            NumericalError: a statistic is not finite; the message names layer, projection and statistic.
        """
        for key in sorted(self.values):
            for name in sorted(self.values[key]):
                value = sum_over_processes(self.values[key][name]).div_(counts[name])
                self.values[key][name] = value
                if (
                    not torch.stack(value.aminmax()).isfinite().all()
                ):  # NaN is both; needs no mask as large as the value
                    culprit = weight_not_finite(self.module)  # attention can hide a NaN weight until the backward pass
                    raise not_finite("weight" if culprit else name, self.index, culprit or key)


def gather_forward(
    layer_pass: ForwardPass,
    linears: Mapping[str, nn.Linear],
    needs: frozenset[str],
    share: Share,
    seq_len: int,
    group_columns: Mapping[str, int],
    *,
    of_channels: bool = False,
) -> LayerStatistics:
    """Run one layer forward and gather statistics of the given Linears, and of its experts if it has any.

    Args:
        group_columns: columns per group of every Linear that has outputs of groups.
        of_channels: whether channels of experts are groups too.

    Raises:
        NumericalError: a statistic is not finite.
    """
    statistics = LayerStatistics(layer_pass.index, layer_pass.module)

    def observe(name: str, input_BTI: Tensor) -> None:
        tokens = input_BTI.detach().flatten(0, -2).float()
        if "input_sq" in needs:
            statistics.add(name, "input_sq", tokens.square().sum(0))
        if "input_mean" in needs:
            statistics.add(name, "input_mean", tokens.sum(0))
        if needs & OUTPUT_STATISTICS:
            norms_G = output_norms(tokens, linears[name].weight, group_columns[name])
            statistics.add(name, "output_norm", norms_G)
            statistics.add(name, "reached", torch.full_like(norms_G, len(tokens)))

    def observe_experts(experts: Any, call: RoutedCall) -> None:
        for key, found in sums_of_experts(experts, call, needs, of_channels=of_channels).items():
            for name, amount in found.items():
                statistics.add(key, name, amount)

    watched = watch_experts(layer_pass.module, observe_experts) if needs else nullcontext()
    with watch_inputs(linears, observe), watched:
        layer_pass.run()
    statistics.finish(dict.fromkeys(FORWARD_STATISTICS, share.num_sequences * seq_len))
    return statistics


def gather_backward(
    layer_pass: BackwardPass,
    linears: Mapping[str, nn.Linear],
    needs: frozenset[str],
    share: Share,
    seq_len: int,
    group_columns: Mapping[str, int],
    *,
    of_channels: bool = False,
) -> LayerStatistics:
    """Run one layer backward and gather gradient statistics of the given Linears, and of its experts if it has any.

    Args:
        layer_pass: with batches of one sequence if ``grad_sq`` is needed, whose gradients are squared before the mean.
        group_columns: columns per group of every Linear that has masks.
        of_channels: whether channels of experts are groups too.

    Raises:
        NumericalError: a statistic is not finite.
    """
    statistics = LayerStatistics(layer_pass.index, layer_pass.module)
    parameters = _parameters_of(layer_pass.module, linears) if needs & WEIGHT_GRADIENTS else {}
    mean_token = 1.0 / (seq_len - 1)  # gradients of the walk are of SUMS over tokens

    def observe(name: str, input_BTI: Tensor) -> None:
        values_BTI = input_BTI.detach()  # a hook that holds its own tensor is a cycle, which keeps the graph until gc

        def on_gradient(gradient_BTI: Tensor) -> None:
            product_BTI = values_BTI.float() * gradient_BTI.float()
            add_mask_gradients(name, product_BTI.unflatten(2, (-1, group_columns[name])).sum(3))

        if needs & MASK_GRADIENTS and input_BTI.requires_grad:
            input_BTI.register_hook(on_gradient)

    def add_mask_gradients(name: str, mask_grad_BTG: Tensor) -> None:
        if "mask_grad_sq" in needs:
            statistics.add(name, "mask_grad_sq", mask_grad_BTG.sum(1).square().sum(0), mean_token**2)
        if "mask_grad_token_sq" in needs:
            statistics.add(name, "mask_grad_token_sq", mask_grad_BTG.square().sum((0, 1)), mean_token**2)

    def observe_experts(experts: Any, call: RoutedCall) -> None:
        if needs & MASK_GRADIENTS and call.weights.requires_grad:
            watch_mask_gradients(
                experts, call, lambda grad_NE: add_mask_gradients(EXPERTS, grad_NE.unflatten(0, (-1, seq_len)))
            )

    with (
        watch_inputs(linears, observe),
        watch_experts(layer_pass.module, observe_experts),
        _watching_channels(statistics, needs, seq_len) if of_channels else nullcontext(),
        _requiring_gradients(parameters),
    ):
        for gradients in layer_pass.run(list(parameters.values())):
            for key, gradient in zip(parameters, gradients, strict=True):
                if "grad" in needs:
                    statistics.add(key, "grad", gradient, mean_token)
                if "grad_sq" in needs:
                    statistics.add(key, "grad_sq", gradient.float().square(), mean_token**2)
    statistics.finish(dict.fromkeys(BACKWARD_STATISTICS, share.num_sequences))
    return statistics


def _watching_channels(
    statistics: LayerStatistics, needs: frozenset[str], seq_len: int
) -> AbstractContextManager[None]:
    """Return a context that adds gradients of masks on the channels of a layer's experts."""

    def add(sums: Mapping[str, Tensor]) -> None:
        for name in sorted(MASK_GRADIENTS & needs):
            statistics.add(DOWN, name, sums[name], (seq_len - 1) ** -2.0)

    def observe(experts: Any, call: RoutedCall, output: Tensor) -> None:
        if needs & MASK_GRADIENTS and output.requires_grad:
            watch_channel_gradients(experts, call, output, seq_len, add)

    return watch_expert_outputs(statistics.module, observe)


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Clear ``requires_grad`` of all parameters, and restore it on exit, also after an error."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():  # by name: offloaded layers have new parameters
            parameter.requires_grad_(flags[name])


@contextmanager
def _requiring_gradients(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)


def _parameters_of(module: nn.Module, linears: Mapping[str, nn.Linear]) -> dict[str, nn.Parameter]:
    """Return the parameters of Linears of a layer, of its query heads, and of its experts, if it has any."""
    parameters: dict[str, nn.Parameter] = {}
    for name, linear in linears.items():
        parameters[name] = cast(nn.Parameter, linear.weight)
        if linear.bias is not None:
            parameters[f"{name}.bias"] = linear.bias
    return parameters | head_parameters(module) | (expert_parameters(module) if has_experts(module) else {})
