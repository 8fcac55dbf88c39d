"""Magnitude: the size of the weights, without text.

What it scores
    Every weight of the seven Linears (biases included), summed over the group.
Formula and source
    ``|w|`` (Han et al. 2015, arXiv:1506.02626).
Shapes and sums
    w is [O, I] for a weight and [O] for a bias, float32; the sum over a group is float64.
What it needs
    The weights.
Cost
    One pass over the weights.
When it misleads
    The inputs of large weights may always be small. The scale of weights differs between layers for reasons unrelated
    to importance, so that the raw global order empties whole layers; it is therefore normalized by default. No
    normalization that we tried saves a model whose massive activations pass through small weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgsp.scoring.methods.types import WeightMethod


def saliency(parameter: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    """Return the saliency of a weight [O, I] or bias [O], float32."""
    return parameter.float().abs()


MAGNITUDE = WeightMethod("magnitude", frozenset(), saliency, normalization="rank")
