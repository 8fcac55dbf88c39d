"""The types of importance method: saliency of weights, of columns, or of whole groups.

I in_features | O out_features | G groups
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Generator, Tensor


@dataclass(frozen=True)
class WeightMethod:
    """Saliency of every weight of all matrices of a layer, summed over the weights that are removed with a group.

    ``saliency(parameter, statistics)`` takes a weight [O, I] or a bias [O], whose input counts as 1, and the statistics
    named in ``needs`` (``hgsp/scoring/statistics.py``), and returns float32 of the same shape. Experts come one by one.
    """

    name: str
    needs: frozenset[str]
    saliency: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    normalization: str = "none"


@dataclass(frozen=True)
class ColumnMethod:
    """Saliency of the columns of ``o_proj`` and every ``down_proj``, summed over the columns of a group.

    ``columns(weight, statistics)`` takes a weight [O, I] and returns float32 [I].
    """

    name: str
    needs: frozenset[str]
    columns: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    normalization: str = "none"


@dataclass(frozen=True)
class MaskMethod:
    """A statistic [G] of the masks on groups, used as their importance."""

    name: str
    statistic: str
    normalization: str = "none"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.statistic})

    def groups(self, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return the importance of the groups of one block, float32 [G]."""
        return statistics[self.statistic]


@dataclass(frozen=True)
class OutputMethod:
    """Importance from statistics [G] of the outputs of groups: ``groups(statistics)`` returns float32 [G]."""

    name: str
    needs: frozenset[str]
    groups: Callable[[Mapping[str, Tensor]], Tensor]
    normalization: str = "none"


@dataclass(frozen=True)
class GroupMethod:
    """Importance drawn without weights: ``groups(num_groups, cost_params, generator)`` returns float64 [G]."""

    name: str
    groups: Callable[[int, int, Generator], Tensor]
    needs: frozenset[str] = frozenset()
    normalization: str = "none"


Method = WeightMethod | ColumnMethod | MaskMethod | OutputMethod | GroupMethod
