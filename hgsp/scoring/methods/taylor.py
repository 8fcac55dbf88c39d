"""Taylor: first-order change of the loss when a weight is set to zero.

What it scores
    Every weight of the seven Linears (biases included), summed over the group.
Formula and source
    ``|w * g|``, g the gradient of the calibration loss (mean over sequences of the mean token loss), accumulated over
    ALL sequences before the absolute value (arXiv:2305.11627, vector-wise sum over the weights of a group).
Shapes and sums
    w and g are [O, I] for a weight and [O] for a bias; g and the product are float32, the sum over a group is float64.
What it needs
    One forward and one backward pass; one layer's gradients at a time in float32.
Cost
    About 10 % more than a plain forward and backward pass over the same tokens.
When it misleads
    The sum of absolute values ignores that changes cancel inside a group, and overrates groups of many weights with
    mixed signs. With half of the decoder removed it beats ``fisher`` on SmolLM2-135M and loses to it on
    Qwen2.5-Coder-0.5B; at smaller ratios it loses on both.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgsp.scoring.methods.types import WeightMethod


def saliency(parameter: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    """Return the saliency of a weight [O, I] or bias [O], float32."""
    return (statistics["grad"] * parameter).abs_()


TAYLOR = WeightMethod("taylor", frozenset({"grad"}), saliency)
