"""Second-order Taylor: the first-order term plus a diagonal curvature term.

What it scores
    Every weight of the seven Linears (biases included), summed over the group.
Formula and source
    ``|w * g| + w^2 * h / 2``, g as in ``taylor``, h the mean over sequences of the squared gradient of ONE sequence's
    loss (arXiv:2305.11627; h is the empirical Fisher estimate of the Hessian's diagonal and never negative).
Shapes and sums
    w, g and h are [O, I] for a weight and [O] for a bias; g, h and the result are float32, the sum over a group is
    float64.
What it needs
    One forward and one backward pass with one sequence at a time; two float32 copies of one layer's weights.
Cost
    Nearly two plain forward and backward passes: the backward pass cannot batch sequences, and squares the gradients of
    each.
When it misleads
    h grows with the square of the loss scale and w * g does not, so that the balance of the two terms depends on the
    sequence length. The result is rarely far from ``taylor``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgsp.scoring.methods.types import WeightMethod


def saliency(parameter: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    """Return the saliency of a weight [O, I] or bias [O], float32."""
    weight = parameter.float()
    first_order = (weight * statistics["grad"]).abs_()
    return first_order.add_(weight.square().mul_(statistics["grad_sq"]), alpha=0.5)


TAYLOR_2ND = WeightMethod("taylor_2nd", frozenset({"grad", "grad_sq"}), saliency)
