"""A latency table for the terminal: milliseconds of blocks, and the speed-ups of a few plain changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from rich.table import Table

from hgsp.costs.latency import LatencyTable, Workload
from hgsp.costs.names import PHASES
from hgsp.models.geometry import Geometry, LayerShape

#: Spread of the passes beyond which a line of warning is due.
BUSY = 0.2


def describe(table: LatencyTable, geometry: Geometry) -> Iterator[Table | str]:
    """Yield two tables per measured phase, and a warning if the machine was busy."""
    for phase in PHASES:
        workloads = sorted(workload for workload in table.timings if workload.phase == phase)
        if workloads:
            yield milliseconds(table, workloads)
            yield speedups(table, geometry, workloads)
    spread = max(timings.spread for timings in table.timings.values())
    if spread > BUSY:
        yield f"the passes differ by {spread:.0%}: the machine is busy, measure again or with --clock cpu"


def milliseconds(table: LatencyTable, workloads: Sequence[Workload]) -> Table:
    """Return the milliseconds of one block of each size, and of everything outside the layers."""
    multiple = max(table.mlp_widths)
    shown = _table(f"{workloads[0].phase}: milliseconds of one block ({table.dtype}, {table.device_name})", workloads)
    rows = {
        **{f"KV groups: {groups}": LayerShape(groups, 0) for groups in table.kv_groups},
        **{f"MLP channels: {width}": LayerShape(0, width) for width in table.mlp_widths[multiple]},
    }
    for label, shape in rows.items():
        shown.add_row(label, *(_in_ms(table.block_seconds([shape], workload).sum()) for workload in workloads))
    shown.add_row("rest of the model", *(_in_ms(table.seconds([], workload)) for workload in workloads))
    return shown


def speedups(table: LatencyTable, geometry: Geometry, workloads: Sequence[Workload]) -> Table:
    """Return the predicted speed-ups of models that lack half of something."""
    shown = _table(f"{workloads[0].phase}: predicted speed-up of the whole model", workloads)
    for label, shapes in halved(geometry.shapes, max(table.mlp_widths)).items():
        shown.add_row(label, *(f"{table.speedup(geometry.shapes, shapes, workload):.2f}" for workload in workloads))
    return shown


def halved(shapes: Sequence[LayerShape], multiple: int) -> Mapping[str, Sequence[LayerShape]]:
    """Return models that lack half of something, by a label.

    Args:
        multiple: of the halved widths.
    """
    widths = [max(1, shape.mlp_width // 2 // multiple) * multiple for shape in shapes]
    groups = [max(1, shape.num_kv_groups // 2) for shape in shapes]
    return {
        "half of all channels": [replace(shape, mlp_width=w) for shape, w in zip(shapes, widths, strict=True)],
        "the same, odd widths": [replace(shape, mlp_width=w - 1) for shape, w in zip(shapes, widths, strict=True)],
        "half of all KV groups": [replace(shape, num_kv_groups=k) for shape, k in zip(shapes, groups, strict=True)],
        "no attention in every second layer": [
            replace(shape, num_kv_groups=shape.num_kv_groups * (index % 2)) for index, shape in enumerate(shapes)
        ],
        "half of all layers": shapes[: len(shapes) // 2],
    }


def _table(title: str, workloads: Sequence[Workload]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("batch x context")
    for workload in workloads:
        table.add_column(f"{workload.batch_size} x {workload.context_length}", justify="right")
    return table


def _in_ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"
