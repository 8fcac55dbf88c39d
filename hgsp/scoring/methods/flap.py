"""FLAP: how much the output would fluctuate without a column, given that its mean can be compensated.

What it scores
    The columns of ``o_proj`` and ``down_proj``, summed over the group.
Formula and source
    ``Var_t(x_j) * ||W_:j||^2``, x the input of ``o_proj`` or ``down_proj`` (arXiv:2312.11983). Published with z-scores
    per layer, which mean nothing over the few KV groups of a GQA layer; here the common ``--score_normalization``
    applies.
Shapes and sums
    Mean and mean of squares of x are [I], summed in float32; W is [O, I]; a group's columns are added in float64.
What it needs
    One forward pass.
Cost
    Less than a plain forward pass.
When it misleads
    It assumes that the mean of the removed columns is added back as a bias, and like ``wanda`` it compares columns
    inside ONE matrix: it is normalised by default.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgsp.scoring.methods.types import ColumnMethod


def columns(weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    variance = (statistics["input_sq"] - statistics["input_mean"].square()).clamp_(min=0)
    return variance * weight.float().square().sum(0)


FLAP = ColumnMethod("flap", frozenset({"input_sq", "input_mean"}), columns, normalization="rank")
