"""Profiling: the latency table of one model on one device, without its weights.

One model with random weights has layers of every size, shuffled, so that whatever slows the machine slows all sizes
alike. Its layers are copied until their bytes reach those of the dense model, up to ``MAX_WORKING_SET``: a layer alone
would stay in a cache that the real model does not fit into, and decoding takes as long as reading the weights.

Every pass gives each block a share of the pass. The table has the median share over passes and copies times the median
seconds of a pass.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from hgsp.console.progress import Progress, silent
from hgsp.costs.latency import BlockTimings, Floats, LatencyTable, Workload, refuse_unmeasured
from hgsp.costs.names import PHASES, PREFILL
from hgsp.costs.passes import PassSeconds, TimedPasses, random_model
from hgsp.environment import describe_environment, device_name
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.models.loading import DTYPES

#: Bytes of weights beyond which no cache of a processor or GPU holds a useful part of them.
MAX_WORKING_SET = 1 << 30
#: Widths in steps of these multiples are timed apart; kernels are slower for the others.
WIDTH_MULTIPLES = (1, 8, 64)
#: Measured sizes per grid: widths of one multiple, and numbers of KV groups.
GRID_SIZE = 8


@dataclass(frozen=True)
class ProfileOptions:
    """How to measure.

    Args:
        device, dtype: as served.
        phases, batch_sizes, context_lengths: the workloads are all combinations.
        repeats: passes per workload.
        max_seconds: a workload starts no pass after this time.
        clock: "cpu" counts CPU time, on a CPU alone.
    """

    device: str = "cpu"
    dtype: str = "bfloat16"
    phases: tuple[str, ...] = PHASES
    batch_sizes: tuple[int, ...] = (1, 16)
    context_lengths: tuple[int, ...] = (512, 2048)
    repeats: int = 20
    max_seconds: float = 30.0
    clock: str = "wall"

    @property
    def workloads(self) -> tuple[Workload, ...]:
        return tuple(Workload(*values) for values in product(self.phases, self.batch_sizes, self.context_lengths))


@dataclass(frozen=True)
class Grid:
    """The sizes to measure, ascending: numbers of KV groups, and multiple -> widths."""

    kv_groups: tuple[int, ...]
    mlp_widths: Mapping[int, tuple[int, ...]]

    def shapes(self, copies: int = 1) -> list[LayerShape]:
        """Return the layers of the timed model: ``copies`` times every size, each time in another order."""
        shuffled = random.Random(0)
        widths = [width for widths in self.mlp_widths.values() for width in widths]
        pairs = max(len(widths), len(self.kv_groups))
        shapes: list[LayerShape] = []
        for _ in range(copies):
            columns = [[sizes[index % len(sizes)] for index in range(pairs)] for sizes in (self.kv_groups, widths)]
            for column in columns:
                shuffled.shuffle(column)
            shapes += [LayerShape(*sizes) for sizes in zip(*columns, strict=True)]
        return shapes


def grid_of(geometry: Geometry) -> Grid:
    """Return the sizes to measure, from the smallest to those of the largest layer."""
    groups = max(shape.num_kv_groups for shape in geometry.shapes)
    width = max(shape.mlp_width for shape in geometry.shapes)
    multiples = [multiple for multiple in WIDTH_MULTIPLES if width // multiple >= 2 * GRID_SIZE] or [1]
    coarser = [*multiples[1:], None]
    widths = {of: _widths(width, of, next_of) for of, next_of in zip(multiples, coarser, strict=True)}
    return Grid(_spread(groups), widths)


def profile(
    model: str,
    config: Any,
    geometry: Geometry,
    options: ProfileOptions,
    *,
    progress: Progress = silent,
) -> LatencyTable:
    """Time the blocks of a model.

    Args:
        model: its name in the table.
        config: of the dense model.
    """
    refuse_unmeasured(geometry)
    grid = grid_of(geometry)
    copies = _copies(grid, geometry, DTYPES[options.dtype].itemsize)
    shapes = grid.shapes(copies)
    chain = random_model(config, geometry, shapes, options.dtype, options.device)
    all_layers = chain.model.layers
    timings = {}
    for workload in progress(options.workloads, "profile", len(options.workloads)):
        # prefill uses every weight so often that it does not matter where it was read from
        num_layers = len(shapes) // copies if workload.phase == PREFILL else len(shapes)
        chain.model.layers = all_layers[:num_layers]
        timings[workload] = _block_timings(_timed(chain, workload, options), grid, shapes[:num_layers])
    return LatencyTable(
        model=model,
        hidden_size=geometry.hidden_size,
        head_dim=geometry.head_dim,
        queries_per_kv=geometry.queries_per_kv,
        device_name=device_name(options.device),
        dtype=options.dtype,
        clock=options.clock,
        kv_groups=grid.kv_groups,
        mlp_widths=grid.mlp_widths,
        timings=timings,
        environment=describe_environment(options.device),
    )


def _copies(grid: Grid, geometry: Geometry, value_bytes: int) -> int:
    """Return how often every size must occur for the working set of the dense model, or the largest one."""
    wanted = min(MAX_WORKING_SET, geometry.decoder_params * value_bytes)
    return math.ceil(wanted / (sum(map(geometry.layer_params, grid.shapes())) * value_bytes))


def _timed(chain: Any, workload: Workload, options: ProfileOptions) -> list[PassSeconds]:
    """Run the passes of one workload; the first one warms up, and counts only if there is no time for another."""
    passes = TimedPasses(chain, workload, options.clock)
    deadline = time.monotonic() + options.max_seconds
    timed = [passes.run_blocks()]
    while len(timed) <= options.repeats and time.monotonic() < deadline:
        timed.append(passes.run_blocks())
    return timed[1:] or timed


def _block_timings(passes: Sequence[PassSeconds], grid: Grid, shapes: Sequence[LayerShape]) -> BlockTimings:
    """Fold passes into the seconds of each size: median share of a pass times the median pass."""
    total = float(np.median([one.total for one in passes]))
    seconds_PLK = total * np.array([one.blocks / one.total for one in passes])
    attention = _by_size(seconds_PLK[..., 0], [shape.num_kv_groups for shape in shapes])
    mlp = _by_size(seconds_PLK[..., 1], [shape.mlp_width for shape in shapes])
    low, high = np.quantile([one.total for one in passes], (0.25, 0.75))
    return BlockTimings(
        rest=float(np.median([one.rest / one.total for one in passes])) * total,
        attention=tuple(attention[size] for size in grid.kv_groups),
        mlp={multiple: tuple(mlp[width] for width in widths) for multiple, widths in grid.mlp_widths.items()},
        spread=float((high - low) / total),
    )


def _by_size(seconds_PL: Floats, size_of_L: Sequence[int]) -> dict[int, float]:
    """Return the median over passes and layers for each size."""
    sizes = np.array(size_of_L)
    return {size: float(np.median(seconds_PL[:, sizes == size])) for size in set(size_of_L)}


def _spread(largest: int) -> tuple[int, ...]:
    """Return at most ``GRID_SIZE`` numbers from 1 to ``largest``, both among them."""
    return tuple(sorted({round(number) for number in np.linspace(1, largest, GRID_SIZE)}))


def _widths(largest: int, multiple: int, coarser: int | None) -> tuple[int, ...]:
    """Return multiples that are none of the next coarser multiple, up to the largest width."""
    widths = [multiple * count for count in _spread(largest // multiple)]
    return tuple(width - multiple if coarser and width % coarser == 0 else width for width in widths)
