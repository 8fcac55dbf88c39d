"""Sums over tokens that the statistics of groups of outputs and of experts consist of.

N tokens | H hidden | M width of an expert | E experts | k experts of a token | G groups | I in_features
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from hgsp.models.experts import (
    DOWN,
    EXPERTS,
    GATE_UP,
    ROUTER,
    RoutedCall,
    as_linear,
    expert_width,
    inner_of,
    outer_of,
)


def output_norms(input_NI: Tensor, weight_HI: Tensor, columns: int) -> Tensor:
    """Return the norms of the outputs of every group of ``columns`` columns, added over tokens, float32 [G]."""
    if columns == 1:
        return input_NI.abs().sum(0) * weight_HI.float().norm(dim=0)
    pairs = zip(input_NI.split(columns, 1), weight_HI.split(columns, 1), strict=True)
    return torch.stack([linear(inputs, weight.float()).norm(dim=1).sum() for inputs, weight in pairs])


def sums_of_experts(
    experts: Any, call: RoutedCall, needs: frozenset[str], *, of_channels: bool = False
) -> dict[str, dict[str, Tensor]]:
    """Return the sums over the tokens of one call, float32 [E, ...], by matrix and statistic.

    They are computed for one expert at a time, on the tokens that reach it.

    Args:
        experts: the module of the experts of a layer.
        needs: statistics of a forward pass.
        of_channels: whether those of outputs are also needed of single channels, under ``DOWN`` [E, M].
    """
    tokens = call.hidden.float()
    squares, means = {"input_sq"} & needs, {"input_mean"} & needs
    zeros = tokens.new_zeros
    num_experts, width = len(experts.down_proj), expert_width(experts)
    sums: dict[str, dict[str, Tensor]] = {ROUTER: {}}
    if squares:
        sums[ROUTER]["input_sq"] = tokens.square().sum(0)
    sums[GATE_UP] = {name: zeros(num_experts, tokens.shape[1]) for name in squares}
    norms = {"output_norm"} & needs if of_channels else set()
    sums[DOWN] = {name: zeros(num_experts, width) for name in sorted(squares | means | norms)}
    sums[EXPERTS] = {name: zeros(num_experts) for name in sorted({"output_norm", "reached"} & needs)}
    for index in range(num_experts):
        rows, weight_N = call.of_expert(index)
        inner_NM = inner_of(experts, index, call.hidden[rows])
        weighted_NM = inner_NM.float() * weight_N.float()[:, None]
        if squares:
            sums[GATE_UP]["input_sq"][index] = tokens[rows].square().sum(0)
            sums[DOWN]["input_sq"][index] = weighted_NM.square().sum(0)
        if means:
            sums[DOWN]["input_mean"][index] = weighted_NM.sum(0)
        if norms:
            sums[DOWN]["output_norm"][index] = output_norms(
                weighted_NM, as_linear(experts, experts.down_proj[index]), 1
            )
        if sums[EXPERTS]:
            output_NH = outer_of(experts, index, inner_NM).float()
            sums[EXPERTS]["output_norm"][index] = (output_NH.norm(dim=1) * weight_N.float()).sum()
            sums[EXPERTS]["reached"][index] = len(rows)
    return sums


def watch_mask_gradients(experts: Any, call: RoutedCall, observe: Callable[[Tensor], None]) -> None:
    """Call ``observe`` with the gradients of masks on the outputs of experts at every token, float32 [N, E].

    A mask is a factor on the router's weight, so that its gradient is this weight times the weight's own gradient, 0 at
    tokens that do not reach the expert.
    """
    weights_NK, chosen_NK, num_experts = call.weights.detach(), call.experts, len(experts.down_proj)

    def on_gradient(gradient_NK: Tensor) -> None:
        product_NK = weights_NK.float() * gradient_NK.float()
        observe(product_NK.new_zeros(len(product_NK), num_experts).scatter_add_(1, chosen_NK, product_NK))

    call.weights.register_hook(on_gradient)


def watch_channel_gradients(
    experts: Any, call: RoutedCall, output: Tensor, seq_len: int, observe: Callable[[dict[str, Tensor]], None]
) -> None:
    """Call ``observe`` with squared gradients of masks on all channels of experts, float32 [E, M], by statistic.

    A mask is a factor on a channel's input of the down projection. Inner activations are computed again, of one expert
    at a time.

    Args:
        output: of the experts, [N, H].
        seq_len: tokens of a sequence, whose gradients are added before they are squared for ``mask_grad_sq``.
    """
    own = RoutedCall(call.hidden.detach(), call.experts, call.weights.detach())

    def on_gradient(gradient_NH: Tensor) -> None:
        num_experts, _, width = experts.down_proj.shape
        by_sequence = torch.zeros(num_experts, width, device=gradient_NH.device)
        by_token = torch.zeros_like(by_sequence)
        for index in range(num_experts):
            rows, weight_N = own.of_expert(index)
            inner_NM = inner_of(experts, index, own.hidden[rows]).float() * weight_N.float()[:, None]
            mask_grad_NM = inner_NM * (gradient_NH[rows].float() @ experts.down_proj[index].float())
            sums_BM = mask_grad_NM.new_zeros(len(own.hidden) // seq_len, width)
            by_sequence[index] = sums_BM.index_add_(0, rows // seq_len, mask_grad_NM).square().sum(0)
            by_token[index] = mask_grad_NM.square().sum(0)
        observe({"mask_grad_sq": by_sequence, "mask_grad_token_sq": by_token})

    output.register_hook(on_gradient)
