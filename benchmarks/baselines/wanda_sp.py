"""Wanda-sp: Wanda's metric (arXiv:2306.11695) on whole columns, the baseline of the FLAP paper (arXiv:2312.11983).

``S_j = sum_i |W_ij| * ||x_j||_2`` over the columns of ``o_proj`` and ``down_proj``, with x_j their input over all
calibration tokens; the lowest are removed, the same fraction in every layer. Blocks are pruned in order, each on inputs
from the pruned blocks before it.

Adapted to GQA: a KV group's score is the sum over its query heads' columns of ``o_proj``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines.blocks import Block, prune_sequentially
from baselines.widths import top_indices
from hgsp.data.calibration import Calibration


def prune(model: Any, calibration: Calibration, budget_params: int, batch_size: int) -> Any:
    """Return the pruned model; consumes the dense one."""
    return prune_sequentially(model, calibration, budget_params, batch_size, _select)


def group_scores(block: Block, columns: int) -> Tensor:
    """Return the score of every group of a block, float32 [I / columns]."""
    input_sq_I = sum(input_TI.square().sum(0) for input_TI in block.inputs())
    scores_I = block.projection.weight.float().abs().sum(0) * torch.as_tensor(input_sq_I).sqrt()
    return scores_I.unflatten(0, (-1, columns)).sum(1)


def _select(block: Block, columns: int, num_kept: int) -> Tensor:
    return torch.tensor(top_indices(group_scores(block, columns), num_kept))
