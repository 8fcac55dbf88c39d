"""Taylor: first-order change of the loss when a weight becomes zero.

What it scores
    Every weight of the seven Linears (biases included), summed over the group.
Formula and source
    ``|w * g|``, g the gradient of the mean calibration loss (mean over sequences of the mean token loss), accumulated
    over ALL sequences before the absolute value is taken (arXiv:2305.11627, vector-wise sum over the weights of a
    group).
Shapes and sums
    w and g are [O, I] for a weight and [O] for a bias; g is summed in float32, the product is float32, and its sum over
    a group is float64.
What it needs
    One forward and one backward pass; one layer's gradients at a time in float32.
Cost
    About a plain forward and backward pass over the same tokens, and some 10 % more.
When it misleads
    The sum of absolute values ignores that changes inside a group cancel, so it overrates groups with many weights of
    mixed sign. Where half of the decoder leaves at once it beat ``fisher`` on SmolLM2-135M and lost to it on
    Qwen2.5-Coder-0.5B; below that it lost on both.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgsp.scoring.methods.types import WeightMethod


def saliency(parameter: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    return (statistics["grad"] * parameter).abs_()


TAYLOR = WeightMethod("taylor", frozenset({"grad"}), saliency)
