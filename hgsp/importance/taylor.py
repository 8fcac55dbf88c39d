"""Taylor: first-order change of the loss when a weight becomes zero.

What it scores
    Every weight of the seven Linears (biases included), summed over the group.
Formula and source
    ``|w * g|``, g the gradient of the mean calibration loss, accumulated in float32 over ALL sequences before the
    absolute value is taken (arXiv:2305.11627, vector-wise sum over the weights of a group).
What it needs
    One forward and one backward pass; one layer's gradients at a time in float32.
Cost
    About 1.35 times a plain forward and backward pass over the same tokens, because every layer runs forward twice.
When it misleads
    The sum of absolute values ignores that changes inside a group cancel, so it overrates groups with many weights of
    mixed sign. It beats ``fisher`` where half of the decoder leaves at once and loses to it before.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgsp.importance.types import WeightMethod


def saliency(parameter: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    return (statistics["grad"] * parameter).abs_()


TAYLOR = WeightMethod("taylor", frozenset({"grad"}), saliency)
