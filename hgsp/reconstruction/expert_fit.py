"""Least squares of the down projections of experts that lose channels, over the tokens routed to each.

Let e_t be the dense model's residual stream after the block minus the pruned model's at token t, g_te the router's
weight of expert e there, and l_te what the expert lost: g_te times the output of the dense expert minus that of the
pruned one, of the same input. The target of an expert is

    l_te + (e_t - sum_e' l_te') g_te / sum_e' g_te':

its own loss, and a share of the error that came from elsewhere, from earlier blocks and removed experts. The targets of
the experts of a token add up to e_t. The input of an expert is that of its down projection times g_te, so that a token
counts as it does in the output of the block.

Experts are fitted one after another, with the moments of one of them in memory. An expert keeps its weights where it
has fewer tokens than channels, or none held out, and where that is best for its held-out tokens; all keep them where
the held-out error of the whole block would grow.

N sequences | T tokens | n tokens of an expert | H hidden | W channels of an expert that stay
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hgsp.models.experts import DOWN, RoutedCall, expert_width, has_experts, inner_of, watch_experts
from hgsp.reconstruction.block_fit import BlockBatches
from hgsp.reconstruction.least_squares import Moments, accumulation_dtype, energy, relative_norm, solve
from hgsp.reconstruction.paired_forward import PairedForward
from hgsp.reconstruction.resume import ModuleFit

LOG = logging.getLogger(__name__)


def loses_channels(dense: Any, pruned: Any) -> bool:
    """Return whether the experts of a layer are narrower than in the dense model."""
    if pruned.mlp is None or not has_experts(pruned):
        return False
    return expert_width(pruned.mlp.experts) < expert_width(dense.mlp.experts)


def fit_experts(
    streams: PairedForward, index: int, dense: nn.Module, pruned: Any, experts: Sequence[int]
) -> list[ModuleFit]:
    """Refit the down projections of a layer's experts, and run its MLP in both models.

    Args:
        index: of the layer in the dense model.
        experts: dense indices of the experts that stay.
    """
    streams.pass_dense_mlp(dense)
    batches = streams.block_batches("mlp", pruned)
    module, old_EHW = pruned.mlp.experts, pruned.mlp.experts.down_proj
    new_EHW = old_EHW.detach().clone()
    few, refitted = [], 0
    with streams.errors() as rest_NTH:
        routed = _Routed(dense, pruned, experts, batches, rest_NTH)
        for place, expert in enumerate(experts):
            weights_HW = routed.refit(place)
            if weights_HW is None:
                few.append(expert)
            elif not torch.equal(weights_HW, new_EHW[place]):
                new_EHW[place] = weights_HW
                refitted += 1
    before = after = routed.held_out_energy
    if refitted:
        module.down_proj = nn.Parameter(new_EHW, requires_grad=False)
        after = sum(energy(_error(pruned, batches, batch)) for batch in batches.held_out)
    if not after < before:
        module.down_proj, after, refitted = old_EHW, before, 0
    if few:
        LOG.warning("layer %d: %d of %d experts saw too few tokens to be refitted", index, len(few), len(experts))
    streams.pass_pruned("mlp", pruned, None)
    errors = relative_norm(before, streams.block_energy), relative_norm(after, streams.block_energy)
    return [ModuleFit(index, DOWN, None, *errors, refitted > 0, refitted_experts=refitted, few_tokens=tuple(few))]


class _Routed:
    """Tokens and targets of the experts of a pruned layer.

    Args:
        experts: dense indices of those that stay.
        rest_NTH: takes the error that is no expert's own loss.
    """

    def __init__(
        self, dense: Any, pruned: Any, experts: Sequence[int], batches: BlockBatches, rest_NTH: Tensor
    ) -> None:
        self._dense, self._pruned, self._experts = dense.mlp.experts, pruned.mlp.experts, experts
        self._batches, self._rest_NTH = batches, rest_NTH
        self._calls: dict[int, RoutedCall] = {}
        self.held_out_energy = 0.0
        seen: list[RoutedCall] = []
        with watch_experts(pruned, lambda _experts, call: seen.append(call)):
            for batch in (*batches.fit, *batches.held_out):
                error_TH = _error(pruned, batches, batch)
                call = seen.pop()
                dense_index_E = torch.tensor(experts, device=call.experts.device)
                whole_TH = self._dense(call.hidden, dense_index_E[call.experts], call.weights)
                rest_TH = batches.read(batch)[1] - whole_TH.float()
                rest_NTH[batch] = rest_TH.view(rest_NTH[batch].shape).to(rest_NTH)
                self._calls[batch.start] = RoutedCall(call.hidden[:0], call.experts, call.weights)
                if batch in batches.held_out:
                    self.held_out_energy += energy(error_TH)

    def refit(self, place: int) -> Tensor | None:
        """Return the best weights [H, W] of an expert for its held-out tokens, None where it has too few tokens."""
        old_HW = self._pruned.down_proj[place]
        projection = nn.Linear(old_HW.shape[1], old_HW.shape[0], bias=False, device="meta")
        projection.weight = nn.Parameter(old_HW, requires_grad=False)
        fit = Moments(projection, accumulation_dtype(old_HW.device))
        held_out = Moments(projection, torch.float32)
        num_fit, num_held_out = (
            self._add(place, batches, moments)
            for batches, moments in ((self._batches.fit, fit), (self._batches.held_out, held_out))
        )
        if num_fit < old_HW.shape[1] or not num_held_out:
            return None
        return solve(old_HW, fit, held_out)[0]

    def _add(self, place: int, batches: Sequence[slice], moments: Moments) -> int:
        """Add the tokens of an expert to moments, and return their number."""
        count = 0
        for inputs_NW, target_NH in self._tokens(place, batches):
            moments.add(inputs_NW[None], target_NH[None], target_NH[None])
            count += len(inputs_NW)
        return count

    def _tokens(self, place: int, batches: Sequence[slice]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs of an expert's down projection [n, W] and its targets [n, H], both float32."""
        for batch in batches:
            call = self._calls[batch.start]
            rows, weight_N = call.of_expert(place)
            if not len(rows):
                continue
            hidden_NH, factor_N1 = self._batches.read(batch)[0][rows], weight_N.float()[:, None]
            inner_NW = inner_of(self._pruned, place, hidden_NH)
            dense_NH, pruned_NH = (
                linear(inner, module.down_proj[number]).float()
                for inner, module, number in (
                    (inner_of(self._dense, self._experts[place], hidden_NH), self._dense, self._experts[place]),
                    (inner_NW, self._pruned, place),
                )
            )
            rest_NH = self._rest_NTH[batch].flatten(0, 1)[rows.to(self._rest_NTH.device)].to(dense_NH)
            share_N1 = factor_N1 / call.weights[rows].float().sum(1, keepdim=True)
            yield inner_NW.float() * factor_N1, (dense_NH - pruned_NH) * factor_N1 + rest_NH * share_N1


def _error(pruned: Any, batches: BlockBatches, batch: slice) -> Tensor:
    """Return the error of the residual stream after a pruned layer's MLP, float32 [T, H]."""
    inputs_TH, target_TH = batches.read(batch)
    error: Tensor = target_TH - pruned.mlp(inputs_TH[None])[0].float()
    return error
