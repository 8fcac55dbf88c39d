"""The table of all groups: one row per KV group, SwiGLU channel, expert, and slot of experts, of the dense model.

Rows are ordered by layer, attention before MLP, kind, then group index. Factors and costs are the same for all groups
of a block, and are given as arrays [L, 2]: attention, MLP.

G groups of all layers | L layers | E experts | W channels of each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hgsp.environment import replacing
from hgsp.errors import NumericalError
from hgsp.models.geometry import Geometry
from hgsp.models.kinds import GROUP_KINDS

#: Kinds of groups by their position in ``GROUP_KINDS``; the first two are the numbers of the blocks of a layer too.
ATTENTION, MLP, EXPERT, EXPERT_CHANNEL = range(len(GROUP_KINDS))
CSV_COLUMNS = ("layer", "kind", "group", "importance", "cost", "base_score", "prior", "score", "kept")
#: Block of a layer that groups of a kind belong to.
_BLOCK_OF_KIND = np.array([("attention", "mlp").index(kind.block) for kind in GROUP_KINDS])

#: Factor on scores of groups whose removal saves nothing; scores stay far below the largest float64.
UNSAVING = 1e60

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def block_of(kind: Ints) -> Ints:
    """Return the block of a layer that groups of these kinds belong to: ``ATTENTION`` or ``MLP``."""
    return np.asarray(_BLOCK_OF_KIND[kind], dtype=np.int64)


def depth_profile(num_layers: int, kind: int, power: int) -> Floats:
    """Return a function of depth for one block of every layer and 0 for the other, [L, 2] float64.

    It is depth ** power minus its mean over the layers, with depth from -1 to 1; 1 everywhere for power 0.
    """
    profile_LK = np.zeros((num_layers, 2))
    depth_L = np.linspace(-1, 1, num_layers) ** power
    profile_LK[:, kind] = depth_L - depth_L.mean() if power else depth_L
    return profile_LK


@dataclass(frozen=True, repr=False)
class GroupTable:
    """Parallel arrays [G], sorted on construction.

    Args:
        importance: as the method gives it.
        cost: parameters removed with the group.
        base_score: importance, normalized if configured, over cost.
        prior: 1 without a prior.
        score: ``base_score * prior``.
        channel_order: of layers with slots, the channel that every expert has in every slot, [E, W].

    Raises:
        NumericalError: a value is not finite; the message names layer and kind.
    """

    layer: Ints
    kind: Ints
    group: Ints
    importance: Floats
    cost: Ints
    base_score: Floats
    prior: Floats
    score: Floats
    channel_order: Mapping[int, Ints] = field(default_factory=dict)

    def __post_init__(self) -> None:
        order = np.lexsort((self.group, self.kind, self.layer))
        if (np.diff(order) != 1).any():
            for item in fields(self)[:-1]:
                object.__setattr__(self, item.name, getattr(self, item.name)[order])
        for name in ("importance", "base_score", "prior", "score"):
            _require_finite(name, getattr(self, name), self.layer, self.kind)
        assert (self.cost > 0).all()

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def block(self) -> Ints:
        """The block of every group, 2 * layer + ``ATTENTION`` or ``MLP``."""
        return self.layer * 2 + block_of(self.kind)

    @property
    def part(self) -> Ints:
        """The layer and kind of every group as one number: kinds of layer 0, kinds of layer 1, ..."""
        return self.layer * len(GROUP_KINDS) + self.kind

    def __repr__(self) -> str:
        num_layers, params = int(self.layer[-1]) + 1, int(self.cost.sum())
        return f"GroupTable({len(self):,} groups in {num_layers} layers, {params:,} parameters)"

    def with_prior(self, prior_LK: Floats) -> GroupTable:
        """Return the table with the prior of an array [L, 2] (attention, MLP) and scores multiplied by it."""
        prior = self._of_blocks(prior_LK)
        return replace(self, prior=prior, score=self.base_score * prior)

    def reweighted(self, factor_LK: Floats) -> GroupTable:
        """Return the table with priors and scores multiplied by an array [L, 2] (attention, MLP)."""
        factor = self._of_blocks(factor_LK)
        return replace(self, prior=self.prior * factor, score=self.score * factor)

    def with_cost(self, cost_LK: Floats) -> GroupTable:
        """Return the table with importance divided by another cost than parameters.

        Args:
            cost_LK: of one group in each block (attention, MLP), [L, 2]. Groups that cost nothing score ``UNSAVING``
                times their score per parameter, so that they leave after all others.
        """
        cost = self._of_blocks(cost_LK)
        factor = np.divide(self.cost, cost, out=np.full(len(self), UNSAVING), where=cost > 0)
        return replace(self, base_score=self.base_score * factor, score=self.score * factor)

    def _of_blocks(self, values_LK: Floats) -> Floats:
        """Return the value of every group's block, [G]."""
        return values_LK.ravel()[self.block]

    def with_depth_slopes(self, mlp: float, attention: float) -> GroupTable:
        """Return the table with scores multiplied by e^-slope in the first layer, rising to e^slope in the last.

        Early layers lose less by pruning than late ones if later layers are reconstructed.
        """
        num_layers, slopes = int(self.layer[-1]) + 1, {MLP: mlp, ATTENTION: attention}
        exponents = (slope * depth_profile(num_layers, kind, power=1) for kind, slope in slopes.items())
        return self.reweighted(np.exp(sum(exponents)))

    def zeroed_unless(self, kept: npt.NDArray[np.bool_]) -> GroupTable:
        """Return the table with score 0 for groups outside the mask [G], which removes them first."""
        return replace(self, base_score=self.base_score * kept, score=self.score * kept)

    def write_csv(self, path: Path, kept: npt.NDArray[np.bool_]) -> None:
        """Write one row per group with the columns ``CSV_COLUMNS``; ``kept`` is a mask [G]."""
        kinds = [GROUP_KINDS[kind].name for kind in self.kind.tolist()]
        columns = (self.layer, kinds, self.group, self.importance, self.cost, self.base_score, self.prior, self.score)
        as_lists = [column if isinstance(column, list) else column.tolist() for column in columns]
        # an 8B model has half a million rows, and no value needs quoting
        with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as sink:
            sink.write(",".join(CSV_COLUMNS) + "\n")
            sink.writelines(
                f"{layer},{kind},{group},{importance!r},{cost},{base!r},{prior!r},{score!r},{keep}\n"
                for layer, kind, group, importance, cost, base, prior, score, keep in zip(
                    *as_lists, kept.astype(int).tolist(), strict=True
                )
            )


def build_group_table(
    importance: Sequence[Mapping[str, Floats]],
    geometry: Geometry,
    base_importance: Sequence[Mapping[str, Floats]] | None = None,
    channel_order: Mapping[int, Ints] | None = None,
) -> GroupTable:
    """Build the table from the importances of every layer.

    Args:
        importance: ``{"attention": [K], "mlp": [M]}`` per layer, or "expert" [E] for "mlp", and "expert_channel" [W]
            of slots where experts lose channels; float64, any common unit.
        geometry: of the dense model; gives the cost of each group.
        base_importance: normalized importances for the base score; default: ``importance``.
        channel_order: of layers with slots.

    Raises:
        NumericalError: an importance is not finite; the message names layer and kind.
    """
    layers, kinds, groups, values, bases, costs = [], [], [], [], [], []
    for index, by_kind in enumerate(importance):
        for kind, name in enumerate(kind.name for kind in GROUP_KINDS):
            if name not in by_kind:
                continue
            block = np.asarray(by_kind[name], dtype=np.float64)
            layers.append(np.full(len(block), index))
            kinds.append(np.full(len(block), kind))
            groups.append(np.arange(len(block)))
            costs.append(np.full(len(block), geometry.params_per_group(name, geometry.shapes[index])))
            values.append(block)
            bases.append(block if base_importance is None else base_importance[index][name])
    cost = np.concatenate(costs).astype(np.int64)
    base_score = np.concatenate(bases) / cost
    return GroupTable(
        layer=np.concatenate(layers).astype(np.int64),
        kind=np.concatenate(kinds).astype(np.int64),
        group=np.concatenate(groups).astype(np.int64),
        importance=np.concatenate(values),
        cost=cost,
        base_score=base_score,
        prior=np.ones(len(cost)),
        score=base_score,
        channel_order=channel_order or {},
    )


def _require_finite(name: str, values: Floats, layer: Ints, kind: Ints) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        where = f"layer {layer[bad[0]]}, {GROUP_KINDS[kind[bad[0]]].name}"
        raise NumericalError(
            f"{name} of {len(bad)} groups is not finite, first in {where}; use --dtype bfloat16 or float32"
        )
