"""Slots: channels of all experts of a layer that leave together, the weakest of every expert first.

Experts of a layer are stored as one tensor and keep the same number of channels, each its own strongest ones. Slot k is
the k-th weakest channel of every expert. Its importance is the mean over experts times their number, so that it is, as
that of all groups, for all parameters that leave. Experts without any importance, which no calibration token reaches or
which an earlier round dropped, have no say in the mean.

E experts | W channels of each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hgsp.models.geometry import Geometry
from hgsp.scoring.groups import Floats, Ints
from hgsp.scoring.normalization import LayerImportance

CHANNELS = "expert_channel"


def importance_of_slots(
    by_layer: Sequence[LayerImportance], geometry: Geometry, normalization: str
) -> tuple[list[LayerImportance], Mapping[int, Ints]]:
    """Return importances of slots [W] in place of channels [E, W], and layer -> channels [E, W] of the experts by slot.

    Without pruning of channels, both are left out. Channels are ordered by their output projection alone where groups
    are (normalization "output").
    """
    found: list[LayerImportance] = []
    orders: dict[int, Ints] = {}
    for index, layer in enumerate(by_layer):
        channels = {name: values for name, values in layer.items() if name.split(".")[0] == CHANNELS}
        others = {name: values for name, values in layer.items() if name not in channels}
        if channels and geometry.prunes_expert_channels:
            output = channels.get(f"{CHANNELS}.output", channels[CHANNELS])
            order_EW = np.argsort(output if normalization == "output" else channels[CHANNELS], axis=1, kind="stable")
            orders[index] = order_EW.astype(np.int64)
            counts_E = channels[CHANNELS].sum(axis=1) != 0
            others |= {name: _mean(values, order_EW, counts_E) for name, values in channels.items()}
        found.append(others)
    return found, orders


def _mean(channels_EW: Floats, order_EW: Ints, counts_E: npt.NDArray[np.bool_]) -> Floats:
    """Return the mean over the experts that count, times the number of all, [W]."""
    num_experts, width = channels_EW.shape
    if not counts_E.any():
        return np.zeros(width)
    return np.asarray(np.take_along_axis(channels_EW, order_EW, axis=1)[counts_E].mean(0) * num_experts)
