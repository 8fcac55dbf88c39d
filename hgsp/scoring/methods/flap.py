"""FLAP: fluctuation of the output that a column causes, assuming that its mean is compensated.

What it scores
    The columns of ``o_proj`` and ``down_proj``, summed over the group.
Formula and source
    ``Var_t(x_j) * ||W_:j||^2``, x the input of ``o_proj`` or ``down_proj`` (arXiv:2312.11983). The paper standardizes
    per layer, which is meaningless for the few KV groups of a GQA layer; here ``--score_normalization`` applies.
Shapes and sums
    Mean and mean of squares of x are float32 [I]; W is [O, I]; the columns of a group are added in float64.
What it needs
    One forward pass.
Cost
    Less than a plain forward pass.
When it misleads
    It assumes that the mean of the removed columns is added back as a bias. Like ``wanda`` it compares columns of ONE
    matrix, and is therefore normalized by default.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgsp.scoring.methods.types import ColumnMethod


def columns(weight: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    """Return the saliency of the columns of a weight [O, I], float32 [I]."""
    variance = (statistics["input_sq"] - statistics["input_mean"].square()).clamp_(min=0)
    return variance * weight.float().square().sum(0)


FLAP = ColumnMethod("flap", frozenset({"input_sq", "input_mean"}), columns, normalization="rank")
