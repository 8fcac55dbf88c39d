"""Normalization, which makes the importances of different layers comparable before one global order.

``wanda``, ``magnitude`` and ``flap`` compare columns of one matrix. Their scale follows that of a layer's weights and
activations, so that a global order of raw importances empties whole layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hgsp.models.geometry import Geometry
from hgsp.models.kinds import KIND_NAMED
from hgsp.scoring.groups import Floats

#: Importance of one layer's groups: "attention" [K] and "mlp" [M] or "expert" [E], float64. Methods that score all
#: weights add the share of the output projections alone as "attention.output" and "mlp.output" or "expert.output".
#: Channels of experts are "expert_channel" [E, W] as scored, and [W] as slots.
LayerImportance = Mapping[str, Floats]


def kinds_in(importance: Mapping[str, object]) -> list[str]:
    """Return the kinds of the groups of one layer: of its attention, and of its MLP."""
    return [kind for kind in KIND_NAMED if kind in importance]


def _none(importance: Floats, output: Floats, group_params: int) -> Floats:
    """The importance as the method gives it."""
    return importance


def _mean(importance: Floats, output: Floats, group_params: int) -> Floats:
    """The importance over the mean of its block, so that the mean score per parameter is 1 in every block."""
    return _share(importance, output, group_params) * len(importance) * group_params


def _share(importance: Floats, output: Floats, group_params: int) -> Floats:
    """The group's share of the importance of its block, which sums to 1 in every block, large or small."""
    total = importance.sum()
    return importance / total if total > 0 else importance


def _rank(importance: Floats, output: Floats, group_params: int) -> Floats:
    """The group's rank in its block over the size of the block, in (0, 1], times the cost of a group."""
    rank = np.empty(len(importance))
    rank[np.argsort(importance, kind="stable")] = np.arange(1, len(importance) + 1)
    return rank / len(importance) * group_params


def _output(importance: Floats, output: Floats, group_params: int) -> Floats:
    """The same rank, by the output projection alone: the input projections say little about a group's importance."""
    return _rank(output, output, group_params)


NORMALIZERS: dict[str, Callable[[Floats, Floats, int], Floats]] = {
    "none": _none,
    "mean": _mean,
    "share": _share,
    "rank": _rank,
    "output": _output,
}


def normalize(importance: Sequence[LayerImportance], geometry: Geometry, name: str) -> list[LayerImportance]:
    """Normalize every block (layer, kind) by itself.

    Args:
        name: a key of ``NORMALIZERS``.

    Returns:
        "attention" [K] and "mlp" [M] or "expert" [E] of every layer, and "expert_channel" [W] of slots, float64.
    """
    normalizer = NORMALIZERS[name]
    return [
        {
            kind: normalizer(
                layer[kind], layer.get(f"{kind}.output", layer[kind]), geometry.params_per_group(kind, shape)
            )
            for kind in kinds_in(layer)
        }
        for layer, shape in zip(importance, geometry.shapes, strict=True)
    ]
