"""Budgets of a request: ratios and targets as parameters, and the unit that the ranking counts in."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hgsp.costs.costs import COSTS, CostOptions, kv_cache_bytes, weight_bytes
from hgsp.costs.latency import LatencyTable, Workload
from hgsp.models.geometry import Geometry
from hgsp.models.loading import DTYPES
from hgsp.pipeline.budget_config import BudgetConfig
from hgsp.pruning.budget import Budget, Target, budget_for_target
from hgsp.pruning.shape_rules import ShapeRules, budget_for_ratio
from hgsp.scoring.groups import Floats

#: Tokens that a new token attends to, for costs that depend on it, where the model has as many positions.
CONTEXT_LENGTH = 2048


def read_profile(config: BudgetConfig, geometry: Geometry) -> tuple[LatencyTable, Workload] | None:
    """Read ``--profile`` and the workload that counts; None without one.

    Raises:
        InputError: no latency table, one of another model, or a workload outside it.
    """
    if config.profile is None:
        return None
    table = LatencyTable.read(Path(config.profile))
    table.check(geometry)
    workload = table.default_workload if config.workload is None else Workload(*config.parsed_workload())
    table.seconds(geometry.shapes, workload)  # refuses a workload outside the measured ones
    return table, workload


def budgets_of(
    config: BudgetConfig,
    geometry: Geometry,
    shape_rules: ShapeRules,
    dtype: str,
    profile: tuple[LatencyTable, Workload] | None,
) -> tuple[Budget, ...]:
    """Return one budget per ratio, or that of the target.

    Raises:
        InputError: a ratio or target out of reach.
    """
    if config.pruning_ratio is not None:
        ratios = config.pruning_ratio
        return tuple(Budget(budget_for_ratio(geometry, ratio, shape_rules, config.ratio_of)) for ratio in ratios)
    return (budget_for_target(geometry, _target(config, geometry, dtype, profile), shape_rules),)


def _target(
    config: BudgetConfig, geometry: Geometry, dtype: str, profile: tuple[LatencyTable, Workload] | None
) -> Target:
    name = str(config.target_name)
    asked = getattr(config, name)
    if profile is not None and name == "target_speedup":
        table, workload = profile
        dense = table.seconds(geometry.shapes, workload)
        return Target(name, asked, dense / asked, partial(table.seconds, workload=workload), lambda s: dense / s)
    measure = {"target_bytes": weight_bytes, "target_kv_bytes": kv_cache_bytes}[name]
    value_bytes = DTYPES[dtype].itemsize
    return Target(name, asked, asked, lambda shapes: measure(geometry, shapes, value_bytes), float)


def cost_per_group(
    config: BudgetConfig,
    geometry: Geometry,
    dtype: str,
    profile: tuple[LatencyTable, Workload] | None,
    max_positions: int | None,
) -> Floats | None:
    """Return the cost of one group of every block in the unit of the ranking, float64 [L, 2]; None for parameters."""
    if config.ranking_cost == "params":
        return None
    table, workload = profile or (None, None)
    context_length = min(CONTEXT_LENGTH, max_positions or CONTEXT_LENGTH)
    options = CostOptions(DTYPES[dtype].itemsize, context_length, table, workload)
    return COSTS[config.ranking_cost](geometry, options)
