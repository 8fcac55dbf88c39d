"""Wanda: weights times the size of their inputs.

What it scores
    Every weight of the seven Linears (the input of a bias is 1), summed over the group.
Formula and source
    ``|w_ij| * sqrt(mean_t x_tj^2)``, x the input of the Linear over all calibration tokens (arXiv:2306.11695).
Shapes and sums
    w is [O, I], the mean of squares float32 [I]; the product is float32, the sum over a group float64.
What it needs
    One forward pass.
Cost
    About a plain forward pass.
When it misleads
    It compares weights of ONE matrix. Activations grow with depth, so that the raw global order follows the scale of
    the residual stream and ruins the model; inside a block, the input projections outweigh the output projection.
    Groups are therefore ranked in their block, by the output projection alone, by default.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgsp.scoring.methods.types import WeightMethod


def saliency(parameter: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    """Return the saliency of a weight [O, I] or bias [O], float32."""
    magnitude = parameter.float().abs()
    if parameter.ndim == 1:
        return magnitude
    return magnitude.mul_(statistics["input_sq"].sqrt())


WANDA = WeightMethod("wanda", frozenset({"input_sq"}), saliency, normalization="output")
