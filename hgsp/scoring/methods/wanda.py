"""Wanda: weights times the size of the inputs they meet.

What it scores
    Every weight of the seven Linears (a bias meets the constant input 1), summed over the group.
Formula and source
    ``|w_ij| * sqrt(mean_t x_tj^2)``, x the Linear's own input over all calibration tokens (arXiv:2306.11695).
Shapes and sums
    w is [O, I], the mean of squares [I], summed in float32; the product is float32, its sum over a group float64.
What it needs
    One forward pass.
Cost
    About a plain forward pass.
When it misleads
    It compares weights inside ONE matrix. Activations grow with depth, so the raw global order follows the scale of
    the residual stream and wrecks the model. Inside a block, the four or two Linears that read drown the one that
    writes. Both are why it is normalised by default: groups are ranked in their block by what they write.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgsp.scoring.methods.types import WeightMethod


def saliency(parameter: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    magnitude = parameter.float().abs()
    if parameter.ndim == 1:
        return magnitude
    return magnitude.mul_(statistics["input_sq"].sqrt())


WANDA = WeightMethod("wanda", frozenset({"input_sq"}), saliency, normalization="output")
