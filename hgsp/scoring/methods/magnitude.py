"""Magnitude: the size of the weights, no data.

What it scores
    Every weight of the seven Linears (biases included), summed over the group.
Formula and source
    ``|w|`` (Han et al. 2015, arXiv:1506.02626).
Shapes and sums
    w is [O, I] for a weight and [O] for a bias; float32, and float64 in the sum over a group.
What it needs
    The weights.
Cost
    One pass over the weights.
When it misleads
    Large weights may meet inputs that are always small. The scale of weights differs between layers for reasons that
    have nothing to do with importance, so the raw global order empties whole layers: it is normalised by default.
    No normalisation we tried saves a model whose massive activations pass through small weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgsp.scoring.methods.types import WeightMethod


def saliency(parameter: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
    return parameter.float().abs()


MAGNITUDE = WeightMethod("magnitude", frozenset(), saliency, normalization="rank")
