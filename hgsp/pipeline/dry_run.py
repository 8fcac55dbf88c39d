"""The dry run: sizes of every layer, and of the model in the formats of engines, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from hgsp.console.tables import new_table
from hgsp.exports.sizes import planned_source, sizes_of
from hgsp.models.geometry import Geometry
from hgsp.models.loading import DTYPES
from hgsp.pipeline.request import Request
from hgsp.pruning.plan import PrunePlan, shares_of


def engine_table(request: Request, plan: PrunePlan | None = None) -> Table:
    """Return the table of bytes of weights and KV cache in every format, dense and, with a plan, pruned."""
    value_bytes = DTYPES[request.config.dtype].itemsize
    dense, config = request.geometry.shapes, request.source.config
    shapes = dense if plan is None else tuple(keep.shape for keep in plan.layers)
    before, after = (
        {size.form: size for size in sizes_of(planned_source(config, request.geometry, layers), value_bytes)}
        for layers in (dense, shapes)
    )
    title = "bytes in the formats of engines, without tokenizer"
    table = new_table(title, "format", "weights", "KV cache/token")
    for form, size in after.items():
        weights, kv_cache = f"{size.weight_bytes:,}", f"{size.kv_bytes_per_token:,}"
        if plan is not None and form in before:
            weights += f" ({size.weight_bytes / before[form].weight_bytes - 1:+.0%})"
            kv_cache += f" ({size.kv_bytes_per_token / before[form].kv_bytes_per_token - 1:+.0%})"
        table.add_row(form, weights, kv_cache)
    notes = [f"{size.form}: {size.note}" for size in after.values() if size.note]
    table.caption = "\n".join(notes)
    return table


def dry_run_table(request: Request, plan: PrunePlan | None = None) -> Table:
    """Return the table of shapes, parameters, bytes and KV-cache bytes per token, dense or, with a plan, kept."""
    geometry: Geometry = request.geometry
    value_bytes = DTYPES[request.config.dtype].itemsize
    shapes = geometry.shapes if plan is None else tuple(keep.shape for keep in plan.layers)
    kinds = geometry.kinds
    headings = ("layer", *(kind.label for kind in kinds), "parameters", "bytes", "KV bytes/token")
    table = new_table(_title(request, plan), *headings)
    for index, (dense, shape) in enumerate(zip(geometry.shapes, shapes, strict=True)):
        sizes = [f"{shape.size_of(kind.name):,}" for kind in kinds]
        if plan is not None:
            sizes = [f"{size} of {dense.size_of(kind.name):,}" for size, kind in zip(sizes, kinds, strict=True)]
        kv_bytes = geometry.kv_cache_bytes_per_token((shape,), value_bytes)
        params = geometry.layer_params(shape)
        table.add_row(f"{index}", *sizes, f"{params:,}", f"{params * value_bytes:,}", f"{kv_bytes:,}")
    other = geometry.total_params - geometry.decoder_params
    blank = [""] * len(kinds)
    table.add_row("rest", *blank, f"{other:,}", f"{other * value_bytes:,}", "0")
    for label, layers in (("all", shapes),) if plan is None else (("kept", shapes), ("dense", geometry.shapes)):
        total = other + sum(map(geometry.layer_params, layers))
        kv_bytes = geometry.kv_cache_bytes_per_token(layers, value_bytes)
        table.add_row(label, *blank, f"{total:,}", f"{total * value_bytes:,}", f"{kv_bytes:,}")
    return table


def _title(request: Request, plan: PrunePlan | None) -> str:
    name = f"{Path(request.config.base_model).name}: {request.geometry.queries_per_kv} query heads per KV head"
    return name if plan is None else f"{name}\n{shares_of(plan.removed_params, request.geometry)} removed"
