"""In the manner of OSSCAR (arXiv:2403.12983): whole columns leave by the error of the layer's best reconstruction.

For ``o_proj`` and ``down_proj`` in turn, x the writer's input in the model cut so far, over the calibration tokens:

    min over V, and over which groups of columns of V are zero, of sum_t ||W x_t - V x_t||^2 + lam ||W - V||^2

With Q = (sum x x^T + lam I)^-1, restricted to the columns that are left, taking group U away from the best V costs
``tr(V_U (Q_UU)^-1 V_U^T)``, and what is left becomes ``V - V_U (Q_UU)^-1 Q_U:``. So groups leave by backward
elimination, Q and V downdated block by block, and V ends as the least-squares solution on what stays. The same fraction
of every layer leaves.

Not done: the paper's local search, which swaps groups after the elimination. Channels leave in ``STEPS`` steps a module
rather than one at a time. Left open for GQA: a group of ``o_proj`` is all columns of a KV head's query heads.

G groups left | C columns of a group | I columns left | H hidden
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from baselines.blocks import Block, cut_in_turn
from hgsp.data.calibration import Calibration

#: lam, relative to the mean diagonal of the Gram matrix.
RIDGE = 1e-2
#: How often a module's remaining channels are scored again.
STEPS = 32


def prune(model: Any, calibration: Calibration, budget_params: int, batch_size: int) -> Any:
    """The pruned model with its writers refitted; takes the dense one over."""
    return cut_in_turn(model, calibration, budget_params, batch_size, partial(_eliminate_and_refit, steps=STEPS))


def _eliminate_and_refit(block: Block, columns: int, num_kept: int, steps: int) -> Tensor:
    weight_HI = block.writer.weight
    gram_II = sum((input_TI.T @ input_TI).double() for input_TI in block.inputs())  # float32 within a batch
    kept_G, refitted_HI = eliminate(weight_HI.double(), torch.as_tensor(gram_II), columns, num_kept, steps)
    weight_HI[:, spans(kept_G, columns)] = refitted_HI.to(weight_HI)
    return kept_G


def eliminate(weight_HI: Tensor, gram_II: Tensor, columns: int, num_kept: int, steps: int) -> tuple[Tensor, Tensor]:
    """The groups that stay, ascending, and the least-squares weights of their columns. All float64."""
    regularised_II = gram_II.clone()
    regularised_II.diagonal().add_(RIDGE * gram_II.diagonal().mean())
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(regularised_II))
    kept_G = torch.arange(len(gram_II) // columns, device=gram_II.device)
    at_a_time = -(-(len(kept_G) - num_kept) // steps)
    while (too_many := len(kept_G) - num_kept) > 0:
        errors_G = removal_errors(weight_HI, inverse_II, columns)
        leaving = torch.zeros_like(kept_G, dtype=torch.bool)
        leaving[errors_G.topk(min(at_a_time, too_many), largest=False).indices] = True
        weight_HI, inverse_II = _downdate(weight_HI, inverse_II, leaving.repeat_interleave(columns))
        kept_G = kept_G[~leaving]
    return kept_G, weight_HI


def removal_errors(weight_HI: Tensor, inverse_II: Tensor, columns: int) -> Tensor:
    """How much the objective grows when one group leaves and the rest is refitted, [G]."""
    blocks_GCC = inverse_II.unflatten(1, (-1, columns)).unflatten(0, (-1, columns)).diagonal(dim1=0, dim2=2)
    blocks_GCC = blocks_GCC.permute(2, 0, 1)
    weights_GCH = weight_HI.T.unflatten(0, (-1, columns))
    if columns == 1:
        return weights_GCH.square().sum((1, 2)) / blocks_GCC.flatten()
    return (weights_GCH * torch.linalg.solve(blocks_GCC, weights_GCH)).sum((1, 2))


def spans(groups_G: Tensor, columns: int) -> Tensor:
    """The columns of some groups."""
    return (groups_G[:, None] * columns + torch.arange(columns, device=groups_G.device)).flatten()


def _downdate(weight_HI: Tensor, inverse_II: Tensor, leaving_I: Tensor) -> tuple[Tensor, Tensor]:
    """Best weights and inverse of the regularised Gram matrix for the columns that stay."""
    cross = torch.linalg.solve(inverse_II[leaving_I][:, leaving_I], inverse_II[leaving_I][:, ~leaving_I])
    weight_HI = weight_HI[:, ~leaving_I] - weight_HI[:, leaving_I] @ cross
    return weight_HI, inverse_II[~leaving_I][:, ~leaving_I] - inverse_II[~leaving_I][:, leaving_I] @ cross
