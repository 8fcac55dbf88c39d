"""A variant of OSSCAR (arXiv:2403.12983): remove the columns without which a layer can be reconstructed best.

For ``o_proj`` and ``down_proj`` in turn, with x the input in the model pruned so far, over the calibration tokens:

    min over V, and over which groups of columns of V are zero, of sum_t ||W x_t - V x_t||^2 + lam ||W - V||^2

With Q = (sum x x^T + lam I)^-1, restricted to the remaining columns, removing group U from the optimal V costs
``tr(V_U (Q_UU)^-1 V_U^T)``, and V becomes ``V - V_U (Q_UU)^-1 Q_U:``. Groups are thus removed by backward elimination,
Q and V downdated block by block, and V ends as the least-squares solution on the kept columns. Every layer loses the
same fraction.

Differences from the paper: no local search, which swaps groups after the elimination, and channels are removed in
``STEPS`` steps per module rather than one at a time. Adapted to GQA: a group of ``o_proj`` is all columns of one KV
head's query heads.

G groups remaining | C columns per group | I columns remaining | H hidden
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from baselines.blocks import Block, prune_sequentially
from hgsp.data.calibration import Calibration

#: lam, as a fraction of the Gram matrix's mean diagonal.
RIDGE = 1e-2
#: Number of times a module's remaining channels are rescored.
STEPS = 32


def prune(model: Any, calibration: Calibration, budget_params: int, batch_size: int) -> Any:
    """Return the pruned model with its output projections refitted; consumes the dense one."""
    select = partial(_eliminate_and_refit, steps=STEPS)
    return prune_sequentially(model, calibration, budget_params, batch_size, select)


def _eliminate_and_refit(block: Block, columns: int, num_kept: int, steps: int) -> Tensor:
    weight_HI = block.projection.weight
    gram_II = sum((input_TI.T @ input_TI).double() for input_TI in block.inputs())  # float32 within a batch
    kept_G, refitted_HI = eliminate(weight_HI.double(), torch.as_tensor(gram_II), columns, num_kept, steps)
    weight_HI[:, spans(kept_G, columns)] = refitted_HI.to(weight_HI)
    return kept_G


def eliminate(weight_HI: Tensor, gram_II: Tensor, columns: int, num_kept: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return the kept groups [num_kept], ascending, and their refitted weights [H, num_kept * columns]; all float64."""
    regularised_II = gram_II.clone()
    regularised_II.diagonal().add_(RIDGE * gram_II.diagonal().mean())
    inverse_II = torch.cholesky_inverse(torch.linalg.cholesky(regularised_II))
    kept_G = torch.arange(len(gram_II) // columns, device=gram_II.device)
    per_step = -(-(len(kept_G) - num_kept) // steps)
    while (excess := len(kept_G) - num_kept) > 0:
        errors_G = removal_errors(weight_HI, inverse_II, columns)
        removed = torch.zeros_like(kept_G, dtype=torch.bool)
        removed[errors_G.topk(min(per_step, excess), largest=False).indices] = True
        weight_HI, inverse_II = _downdate(weight_HI, inverse_II, removed.repeat_interleave(columns))
        kept_G = kept_G[~removed]
    return kept_G, weight_HI


def removal_errors(weight_HI: Tensor, inverse_II: Tensor, columns: int) -> Tensor:
    """Return the increase of the objective if one group is removed and the rest refitted, [G]."""
    blocks_GCC = inverse_II.unflatten(1, (-1, columns)).unflatten(0, (-1, columns)).diagonal(dim1=0, dim2=2)
    blocks_GCC = blocks_GCC.permute(2, 0, 1)
    weights_GCH = weight_HI.T.unflatten(0, (-1, columns))
    if columns == 1:
        return weights_GCH.square().sum((1, 2)) / blocks_GCC.flatten()
    return (weights_GCH * torch.linalg.solve(blocks_GCC, weights_GCH)).sum((1, 2))


def spans(groups_G: Tensor, columns: int) -> Tensor:
    """Return the column indices of some groups, [G * columns]."""
    return (groups_G[:, None] * columns + torch.arange(columns, device=groups_G.device)).flatten()


def _downdate(weight_HI: Tensor, inverse_II: Tensor, removed_I: Tensor) -> tuple[Tensor, Tensor]:
    """Return the optimal weights and the inverse regularised Gram matrix of the columns not removed."""
    cross = torch.linalg.solve(inverse_II[removed_I][:, removed_I], inverse_II[removed_I][:, ~removed_I])
    weight_HI = weight_HI[:, ~removed_I] - weight_HI[:, removed_I] @ cross
    return weight_HI, inverse_II[~removed_I][:, ~removed_I] - inverse_II[~removed_I][:, removed_I] @ cross
