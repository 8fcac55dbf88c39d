"""Makes importances of different layers comparable before they enter one global order.

``wanda``, ``magnitude`` and ``flap`` compare columns inside one matrix; their scale follows that of a layer's weights
and activations, and a raw global order empties whole layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hgsp.models.families import KINDS
from hgsp.models.geometry import Geometry
from hgsp.scoring.groups import Floats

#: Importance of one layer's groups: "attention" [K] and "mlp" [M], float64. Methods that score all seven Linears add
#: the part that lies in the Linear which writes the block's output, as "attention.output" and "mlp.output".
LayerImportance = Mapping[str, Floats]


def _none(importance: Floats, output: Floats, group_params: int) -> Floats:
    """The importance as the method gives it."""
    return importance


def _mean(importance: Floats, output: Floats, group_params: int) -> Floats:
    """Relative to the mean of the block, so that the mean score per parameter is 1 in every block."""
    return _share(importance, output, group_params) * len(importance) * group_params


def _share(importance: Floats, output: Floats, group_params: int) -> Floats:
    """The share of the block's importance that the group carries: every block has the same to give, large or small."""
    total = importance.sum()
    return importance / total if total > 0 else importance


def _rank(importance: Floats, output: Floats, group_params: int) -> Floats:
    """The group's rank in its block, as a fraction in (0, 1], at the score's scale: the same width everywhere."""
    rank = np.empty(len(importance))
    rank[np.argsort(importance, kind="stable")] = np.arange(1, len(importance) + 1)
    return rank / len(importance) * group_params


def _output(importance: Floats, output: Floats, group_params: int) -> Floats:
    """The rank by what the group writes to the block's output alone: what it reads says little about its worth."""
    return _rank(output, output, group_params)


NORMALIZERS: dict[str, Callable[[Floats, Floats, int], Floats]] = {
    "none": _none,
    "mean": _mean,
    "share": _share,
    "rank": _rank,
    "output": _output,
}


def normalize(importance: Sequence[LayerImportance], geometry: Geometry, name: str) -> list[LayerImportance]:
    """Normalise each block (layer, kind) of the importances on its own. Returns "attention" and "mlp" per layer."""
    normalizer = NORMALIZERS[name]
    params = {kind: geometry.params_per_group(kind) for kind in KINDS}
    return [
        {kind: normalizer(layer[kind], layer.get(f"{kind}.output", layer[kind]), params[kind]) for kind in params}
        for layer in importance
    ]
