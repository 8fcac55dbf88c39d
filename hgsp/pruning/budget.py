"""Budgets: how much leaves a model, in parameters or as a target that the plan must reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.pruning.plan import PrunePlan
from hgsp.pruning.shape_rules import ShapeRules

#: Selects a plan that removes at most a number of parameters.
Select = Callable[[int], PrunePlan]


@dataclass(frozen=True)
class Target:
    """A property of the pruned model that must not exceed a limit, such as its bytes or its predicted seconds.

    Args:
        name: of the flag.
        asked: the flag's value.
        limit: of the property.
        measure: returns the property of a model with layers of some shapes.
        describe: returns the property in the flag's unit.
    """

    name: str
    asked: float
    limit: float
    measure: Callable[[Sequence[LayerShape]], float]
    describe: Callable[[float], float]

    def is_reached(self, shapes: Sequence[LayerShape]) -> bool:
        """Return whether a model with layers of these shapes keeps to the limit."""
        return self.measure(shapes) <= self.limit

    def reached(self, shapes: Sequence[LayerShape]) -> float:
        """Return the property of a model with layers of these shapes, in the flag's unit."""
        return self.describe(self.measure(shapes))


@dataclass(frozen=True)
class Budget:
    """Parameters to remove at most; with a target no more than reach it.

    ``params`` is then the most that can be removed at all.
    """

    params: int
    target: Target | None = None

    def plan(self, geometry: Geometry, select: Select) -> PrunePlan:
        """Return the plan of the smallest budget that reaches the target, or of all the parameters without one.

        The budget is bisected to the parameters of one MLP channel, or of the smallest group without channels.

        Raises:
            InputError: the plan of the largest budget does not reach the target.
        """
        if self.target is None:
            return select(self.params)
        plan = select(self.params)
        if not self.target.is_reached(_shapes(plan)):
            raise unreachable(self.target, _shapes(plan))
        below, reaching = -1, self.params
        while reaching - below > geometry.smallest_group_params:
            middle = (below + reaching) // 2
            candidate = select(middle)
            if self.target.is_reached(_shapes(candidate)):
                plan, reaching = candidate, middle
            else:
                below = middle
        return plan


def budget_for_target(geometry: Geometry, target: Target, shape_rules: ShapeRules) -> Budget:
    """Return the budget that reaches a target.

    Raises:
        InputError: the smallest shapes that the rules allow do not reach it; the message has what they reach.
    """
    smallest = shape_rules.smallest_shapes(geometry)
    most = geometry.decoder_params - shape_rules.smallest_params(geometry)
    if not target.is_reached(smallest) and not shape_rules.allow_empty_blocks:
        raise unreachable(target, smallest)
    return Budget(most, target)


def unreachable(target: Target, smallest: Sequence[LayerShape]) -> InputError:
    """Return the error about a target beyond the smallest shapes."""
    return InputError(
        expected=f"--{target.name} within {target.reached(smallest):.4g}, which the smallest shapes reach",
        got=f"{target.asked:.4g}",
        remedy="ask for less, lower --min_kv_groups, --min_mlp_width or --min_experts, or freeze fewer layers",
    )


def _shapes(plan: PrunePlan) -> tuple[LayerShape, ...]:
    return tuple(keep.shape for keep in plan.layers)
