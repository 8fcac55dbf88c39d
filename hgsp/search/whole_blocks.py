"""Whole blocks against narrower ones: candidates with 0, 1, 2, 4, ... emptied blocks, judged after refitting.

A narrower block keeps its fixed cost, an emptied one does not: at equal parameters depth is faster than width
(arXiv:2606.09080). Scores cannot tell how much a whole block is worth once the others are refitted, so that every
candidate is filled to the same target by width, refitted and measured. The lowest divergence wins.

L layers
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hgsp.errors import InputError, NumericalError
from hgsp.models.blocks import KINDS
from hgsp.pruning.plan import PrunePlan
from hgsp.scoring.groups import EXPERT_CHANNEL, Floats, GroupTable

LOG = logging.getLogger(__name__)

#: Layer and kind of a block.
BlockId = tuple[int, int]
#: The search ends after this many larger candidates in a row without a lower divergence.
PATIENCE = 2


@dataclass(frozen=True)
class WholeBlocks:
    """The best plan, the blocks that it lacks, and number of emptied blocks -> nats per token of all candidates."""

    plan: PrunePlan
    emptied: tuple[BlockId, ...]
    divergences: Mapping[int, float]

    def describe(self) -> dict[str, Any]:
        """Return the report's section, JSON types only."""
        return {
            "emptied": [{"layer": layer, "kind": KINDS[kind]} for layer, kind in sorted(self.emptied)],
            "kl_by_emptied_blocks": {str(number): kl for number, kl in sorted(self.divergences.items())},
        }


def search_whole_blocks(
    order: Sequence[BlockId],
    select: Callable[[frozenset[BlockId]], PrunePlan],
    divergence_of: Callable[[PrunePlan], float],
) -> WholeBlocks:
    """Search for the number of blocks to empty whose plan has the lowest divergence.

    The numbers 0, 1, 2, 4, ... come first, then those halfway between the best one and its neighbours.

    Args:
        order: blocks that may be emptied, first ones first (``emptying_order``).
        select: returns the plan with these blocks emptied that meets the target. An InputError says that it cannot be
            met so: by too few emptied blocks before the first plan, by too many after it, which ends the search.
        divergence_of: refits and measures a plan, in nats per token.

    Raises:
        InputError: no number of emptied blocks meets the target.
        NumericalError: a divergence is not finite.
    """
    plans: dict[int, PrunePlan] = {}
    divergences: dict[int, float] = {}

    def measure(number: int) -> None:
        plans[number] = select(frozenset(order[:number]))
        divergences[number] = divergence_of(plans[number])
        LOG.info("%d emptied blocks: KL(dense || pruned) %.4f nats per token", number, divergences[number])
        if not math.isfinite(divergences[number]):
            raise NumericalError(f"the divergence with {number} emptied blocks is {divergences[number]}")

    worse_in_a_row, refused = 0, None
    for number in _doubling(len(order)):
        if worse_in_a_row == PATIENCE:
            break
        try:
            measure(number)
        except InputError as refusal:
            LOG.info("not with %d emptied blocks: %s", number, refusal)
            refused = refusal
            if divergences:
                break
            continue
        worse_in_a_row = 0 if divergences[number] <= min(divergences.values()) else worse_in_a_row + 1
    if not divergences:
        assert refused is not None
        raise refused
    for number in list(_halfway(divergences)):
        measure(number)
    best = min(divergences, key=lambda number: (divergences[number], number))
    return WholeBlocks(plans[best], tuple(order[:best]), divergences)


def emptying_order(
    importance_LK: Floats, cost_LK: Floats, frozen: frozenset[int] = frozenset(), limit: int | None = None
) -> list[BlockId]:
    """Return blocks in ascending order of importance over cost; at least one layer keeps both of its blocks.

    Args:
        importance_LK: of whole blocks (attention, MLP), float64 [L, 2].
        cost_LK: what emptying a block saves, such as seconds, its fixed part included; blocks that save nothing are
            left out.
        frozen: layers that are never touched.
        limit: on the number of blocks.
    """
    candidates = [(layer, kind) for layer, kind in zip(*np.nonzero(cost_LK > 0), strict=True) if layer not in frozen]
    candidates.sort(key=lambda block: (importance_LK[block] / cost_LK[block], block))
    complete = {layer for layer in range(len(cost_LK)) if (cost_LK[layer] > 0).all()}
    order: list[BlockId] = []
    for layer, kind in candidates:
        if complete - {layer}:
            complete -= {layer}
            order.append((int(layer), int(kind)))
    return order[:limit]


def block_importance(table: GroupTable, group_costs: Floats | None = None) -> Floats:
    """Return the importance of every block with its prior, summed over its groups, float64 [L, 2].

    Slots of experts are left out: their channels are those of the experts.

    Args:
        group_costs: that the table's scores are divided by, [L, 2]; None is parameters.
    """
    cost = table.cost if group_costs is None else group_costs.ravel()[table.block]
    num_layers = int(table.layer[-1]) + 1
    weights = table.score * cost * (table.kind != EXPERT_CHANNEL)
    sums = np.bincount(table.block, weights=weights, minlength=num_layers * len(KINDS))
    return np.asarray(sums.reshape(num_layers, len(KINDS)), dtype=np.float64)


def _doubling(most: int) -> Iterator[int]:
    """Yield 0, 1, 2, 4, ... up to a number."""
    number = 0
    while number <= most:
        yield number
        number = 2 * number or 1


def _halfway(divergences: Mapping[int, float]) -> Iterator[int]:
    """Yield the numbers halfway between the best measured one and its neighbours."""
    measured = sorted(divergences)
    best = measured.index(min(measured, key=lambda number: (divergences[number], number)))
    for low, high in zip(measured[max(0, best - 1) : best + 1], measured[best : best + 2], strict=False):
        if (low + high) // 2 not in measured:
            yield (low + high) // 2
