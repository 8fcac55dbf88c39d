"""Latency tables: measured seconds of blocks of every size on one device, interpolated to whole models.

A model is predicted as the sum of its blocks and the rest: embedding, final norm, head and the forward of the model.
Between measured sizes, batch sizes and context lengths, seconds are linear. They never fall as a block grows, and stay
above zero for the smallest block, because calling a block costs time whatever its size.

Kernels are slower for MLP widths that are not multiples of a power of two, so that a table has one grid of widths per
multiple; a width is looked up in the grid of the largest multiple that divides it.

L layers
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hgsp.costs.latency_file import SCHEMA_VERSION, read_latency_file
from hgsp.costs.names import DECODE
from hgsp.environment import write_json
from hgsp.errors import InputError
from hgsp.models.geometry import Geometry, LayerShape

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, order=True)
class Workload:
    """One pass of a model: ``batch_size`` prompts of ``context_length`` tokens, or the token after such prompts."""

    phase: str
    batch_size: int
    context_length: int

    def __str__(self) -> str:
        return f"{self.phase}, batch {self.batch_size}, context {self.context_length}"


@dataclass(frozen=True)
class BlockTimings:
    """Median seconds of one workload.

    Args:
        rest: everything outside the decoder layers.
        attention: one value per number of KV groups in the table.
        mlp: multiple -> one value per width of its grid in the table.
        spread: relative spread between repeats, median over blocks; near 0 on an idle machine.
    """

    rest: float
    attention: tuple[float, ...]
    mlp: Mapping[int, tuple[float, ...]]
    spread: float = 0.0


@dataclass(frozen=True)
class LatencyTable:
    """Timings of one model's blocks on one device.

    Args:
        model: as named on the command line.
        hidden_size, head_dim, queries_per_kv: of that model; the table fits no other geometry.
        device_name, dtype, clock: of the measurement.
        kv_groups: measured numbers of KV groups, ascending.
        mlp_widths: multiple -> measured widths, ascending.
        timings: per workload.
        environment: versions and hardware, JSON types only.
    """

    model: str
    hidden_size: int
    head_dim: int
    queries_per_kv: int
    device_name: str
    dtype: str
    clock: str
    kv_groups: tuple[int, ...]
    mlp_widths: Mapping[int, tuple[int, ...]]
    timings: Mapping[Workload, BlockTimings]
    environment: Mapping[str, Any]

    @property
    def default_workload(self) -> Workload:
        """The smallest measured batch and context, decoding if that was measured."""
        return min(self.timings, key=lambda workload: (workload.phase != DECODE, workload))

    def seconds(self, shapes: Sequence[LayerShape], workload: Workload) -> float:
        """Predict the seconds of one pass of a model with layers of these shapes.

        Raises:
            InputError: the workload is outside the measured ones.
        """
        rest = sum(weight * timings.rest for timings, weight in self._around(workload))
        return rest + float(self.block_seconds(shapes, workload).sum())

    def speedup(self, dense: Sequence[LayerShape], pruned: Sequence[LayerShape], workload: Workload) -> float:
        """Predict how many times as fast the pruned model is, as ``seconds``."""
        return self.seconds(dense, workload) / self.seconds(pruned, workload)

    def block_seconds(self, shapes: Sequence[LayerShape], workload: Workload) -> Floats:
        """Predict the seconds of every block (attention, MLP), float64 [L, 2]; 0 for blocks that a layer lacks.

        Raises:
            InputError: the workload is outside the measured ones.
        """
        around = list(self._around(workload))
        return np.array(
            [
                (
                    sum(weight * self._attention(timings, shape.num_kv_groups) for timings, weight in around),
                    sum(weight * self._mlp(timings, shape.mlp_width) for timings, weight in around),
                )
                for shape in shapes
            ]
        )

    def marginal_seconds(self, shapes: Sequence[LayerShape], workload: Workload) -> Floats:
        """Return the seconds per group of every block (attention, MLP), float64 [L, 2].

        They are the mean slope between the smallest measured size and the size in ``shapes``, without the fixed part.
        A block at its smallest size has all of its seconds in its last group; a block that a layer lacks has 0.
        """
        smallest_width = min(widths[0] for widths in self.mlp_widths.values())
        smallest = [
            LayerShape(
                min(self.kv_groups[0], shape.num_kv_groups - 1) if shape.num_kv_groups else 0,
                min(smallest_width, shape.mlp_width - 1) if shape.mlp_width else 0,
            )
            for shape in shapes
        ]
        slope = self.block_seconds(shapes, workload) - self.block_seconds(smallest, workload)
        removed = _sizes(shapes) - _sizes(smallest)
        return np.divide(slope, removed, out=np.zeros_like(slope), where=removed > 0)

    def check(self, geometry: Geometry) -> None:
        """Refuse a model of another geometry.

        Raises:
            InputError: another hidden size, head dim or number of queries per KV head, a layer larger than the largest
                one measured, a mixture of experts, or linear attention.
        """
        refuse_unmeasured(geometry)
        own = (self.hidden_size, self.head_dim, self.queries_per_kv)
        given = (geometry.hidden_size, geometry.head_dim, geometry.queries_per_kv)
        largest = self.kv_groups[-1], max(widths[-1] for widths in self.mlp_widths.values())
        sizes = tuple(_sizes(geometry.shapes).max(axis=0).tolist())
        if given != own or any(size > most for size, most in zip(sizes, largest, strict=True)):
            raise InputError(
                expected=f"a latency table of this model (hidden size, head dim and queries per KV head {given}, up to "
                f"{sizes[0]} KV groups and {sizes[1]} channels)",
                got=f"one of {self.model} ({own}, {largest[0]} and {largest[1]})",
                remedy="measure this model with `hgsp profile`",
            )

    def warnings(self, device_name: str, dtype: str) -> tuple[str, ...]:
        """Return a line for each difference between the measurement and a device and dtype."""
        pairs = (("device", self.device_name, device_name), ("dtype", self.dtype, dtype))
        return tuple(
            f"the latency table was measured with another {name} ({measured}, not {wanted}): its ratios may differ"
            for name, measured, wanted in pairs
            if measured != wanted
        )

    def write(self, path: Path) -> None:
        """Write the table as JSON, in one step."""
        timings = [asdict(workload) | asdict(self.timings[workload]) for workload in sorted(self.timings)]
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        write_json({"schema_version": SCHEMA_VERSION, **content, "timings": timings}, path)

    @classmethod
    def read(cls, path: Path) -> LatencyTable:
        """Read a file of ``write``.

        Raises:
            InputError: no file, or none of a latency table of this version.
        """
        content = asdict(read_latency_file(path))
        del content["schema_version"]
        return cls(**content | {"timings": dict(map(_timings_of, content["timings"]))})

    def _attention(self, timings: BlockTimings, num_kv_groups: int) -> float:
        return _interpolated(num_kv_groups, self.kv_groups, timings.attention)

    def _mlp(self, timings: BlockTimings, width: int) -> float:
        multiple = max((of for of in self.mlp_widths if width % of == 0), default=min(self.mlp_widths))
        return _interpolated(width, self.mlp_widths[multiple], timings.mlp[multiple])

    def _around(self, workload: Workload) -> Iterator[tuple[BlockTimings, float]]:
        """Yield the measured workloads next to this one with their weights, bilinear in batch size and context."""
        measured = [known for known in self.timings if known.phase == workload.phase]
        batches = _weights(workload.batch_size, {known.batch_size for known in measured})
        contexts = _weights(workload.context_length, {known.context_length for known in measured})
        if not batches or not contexts:
            raise InputError(
                expected=f"a workload within {'; '.join(map(str, sorted(self.timings)))}",
                got=str(workload),
                remedy="measure it with `hgsp profile`",
            )
        for batch_size, batch_weight in batches.items():
            for context_length, context_weight in contexts.items():
                timings = self.timings[Workload(workload.phase, batch_size, context_length)]
                yield timings, batch_weight * context_weight


def refuse_unmeasured(geometry: Geometry) -> None:
    """Refuse mixtures of experts, whose seconds depend on how tokens are routed, and linear attention.

    Raises:
        InputError: a layer has experts or linear attention.
    """
    if geometry.linear_attention_params:
        raise InputError(
            expected="a model with KV groups in every layer, whose blocks have seconds of their own",
            got=f"linear attention in {sum(shape.linear_attention for shape in geometry.shapes)} layers",
            remedy="state budgets of such models as --pruning_ratio, --target_bytes or --target_kv_bytes",
        )
    if geometry.experts_per_token:
        raise InputError(
            expected="a model without experts, whose blocks have seconds of their own",
            got=f"{max(shape.num_experts for shape in geometry.shapes)} experts in a layer",
            remedy="state budgets of such models as --pruning_ratio, --target_bytes or --target_kv_bytes",
        )


def never_falling(values: Sequence[float]) -> Floats:
    """Return the closest non-decreasing sequence in least squares (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] * count >= total * pools[-1][1]:
            previous = pools.pop()
            total, count = total + previous[0], count + previous[1]
        pools.append((total, count))
    return np.concatenate([np.full(count, total / count) for total, count in pools])


def _interpolated(size: int, grid: Sequence[int], seconds: Sequence[float]) -> float:
    """Interpolate over a grid, with the value of the smallest size below it; 0 for size 0."""
    return float(np.interp(size, grid, never_falling(seconds))) if size else 0.0


def _weights(value: int, measured: set[int]) -> dict[int, float]:
    """Return the weights of the measured values next to ``value``; none if it is outside their range."""
    below = max((known for known in measured if known <= value), default=None)
    above = min((known for known in measured if known >= value), default=None)
    if below is None or above is None:
        return {}
    if below == above:
        return {below: 1.0}
    share = (value - below) / (above - below)
    return {below: 1 - share, above: share}


def _sizes(shapes: Sequence[LayerShape]) -> npt.NDArray[np.int64]:
    return np.array([(shape.num_kv_groups, shape.mlp_width) for shape in shapes], dtype=np.int64)


def _timings_of(record: Mapping[str, Any]) -> tuple[Workload, BlockTimings]:
    sizes = {item.name for item in fields(Workload)}
    workload = {name: value for name, value in record.items() if name in sizes}
    return Workload(**workload), BlockTimings(**{name: record[name] for name in record.keys() - sizes})
