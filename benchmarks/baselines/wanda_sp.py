"""Wanda-sp: Wanda's metric (arXiv:2306.11695) for whole columns, as the FLAP paper (arXiv:2312.11983) compares with.

``S_j = sum_i |W_ij| * ||x_j||_2`` over the columns of ``o_proj`` and ``down_proj``, x_j that input over all calibration
tokens; the lowest leave, the same fraction in every layer. Blocks are cut in turn, each on inputs from the cut ones.

Left open for GQA: a KV group's score is the sum over its query heads' columns of ``o_proj``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines.blocks import Block, cut_in_turn
from baselines.widths import strongest
from hgsp.data.calibration import Calibration


def prune(model: Any, calibration: Calibration, budget_params: int, batch_size: int) -> Any:
    """The pruned model; takes the dense one over."""
    return cut_in_turn(model, calibration, budget_params, batch_size, _lowest)


def group_scores(block: Block, columns: int) -> Tensor:
    """Wanda-sp's score of every group of a block, float32."""
    input_sq_I = sum(input_TI.square().sum(0) for input_TI in block.inputs())
    scores_I = block.writer.weight.float().abs().sum(0) * torch.as_tensor(input_sq_I).sqrt()
    return scores_I.unflatten(0, (-1, columns)).sum(1)


def _lowest(block: Block, columns: int, num_kept: int) -> Tensor:
    return torch.tensor(strongest(group_scores(block, columns), num_kept))
