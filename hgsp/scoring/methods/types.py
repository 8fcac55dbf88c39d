"""The kinds of importance method, by what they give: saliency of weights, of columns, or of whole groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Generator, Tensor


@dataclass(frozen=True)
class WeightMethod:
    """Saliency of every single weight of all seven Linears; a group's importance is the sum over what leaves with it.

    ``saliency(parameter, statistics)`` gets a weight [O, I] or a bias [O] and the statistics named in ``needs``
    (``hgsp/scoring/statistics.py``), and returns float32 of the parameter's shape. A bias is a weight whose input is
    always 1.
    """

    name: str
    needs: frozenset[str]
    saliency: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    normalization: str = "none"


@dataclass(frozen=True)
class ColumnMethod:
    """Saliency of the columns of ``o_proj`` and ``down_proj``, the two Linears that read what a group computes.

    ``columns(weight, statistics)`` returns float32 [I]; a group's importance is the sum over its columns.
    """

    name: str
    needs: frozenset[str]
    columns: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    normalization: str = "none"


@dataclass(frozen=True)
class MaskMethod:
    """A statistic of the gate that would scale everything a group writes: one value per group, taken as it is."""

    name: str
    statistic: str
    normalization: str = "none"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.statistic})


@dataclass(frozen=True)
class GroupMethod:
    """Importance drawn for groups directly: ``groups(num_groups, cost_params, generator)`` returns float64 [G]."""

    name: str
    groups: Callable[[int, int, Generator], Tensor]
    needs: frozenset[str] = frozenset()
    normalization: str = "none"


Method = WeightMethod | ColumnMethod | MaskMethod | GroupMethod
