"""The dry run: sizes of every layer, and of the model in the formats of engines, before anything is loaded."""

from __future__ import annotations

from rich.table import Table

from hgsp.exports.sizes import planned_source, sizes_of
from hgsp.models.geometry import Geometry
from hgsp.models.loading import DTYPES
from hgsp.pipeline.request import Request
from hgsp.pruning.plan import PrunePlan


def engine_table(request: Request, plan: PrunePlan | None = None) -> Table:
    """Return the table of bytes of weights and KV cache in every format, dense and, with a plan, pruned."""
    value_bytes = DTYPES[request.config.dtype].itemsize
    dense, config = request.geometry.shapes, request.source.config
    shapes = dense if plan is None else tuple(keep.shape for keep in plan.layers)
    before, after = (
        {size.form: size for size in sizes_of(planned_source(config, request.geometry, layers), value_bytes)}
        for layers in (dense, shapes)
    )
    table = Table(title="bytes in the formats of engines, without tokenizer")
    for heading in ["format", "weights", "KV cache/token"]:
        table.add_column(heading, justify="left" if heading == "format" else "right")
    for form, size in after.items():
        weights, kv_cache = f"{size.weight_bytes:,}", f"{size.kv_bytes_per_token:,}"
        if plan is not None and form in before:
            weights += f" ({size.weight_bytes / before[form].weight_bytes - 1:+.0%})"
            kv_cache += f" ({size.kv_bytes_per_token / before[form].kv_bytes_per_token - 1:+.0%})"
        table.add_row(form, weights, kv_cache)
    notes = [f"{size.form}: {size.note}" for size in after.values() if size.note]
    table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def dry_run_table(request: Request, plan: PrunePlan | None = None) -> Table:
    """Return the table of shapes, parameters, bytes and KV-cache bytes per token, dense and, with a plan, kept."""
    geometry: Geometry = request.geometry
    value_bytes = DTYPES[request.config.dtype].itemsize
    after = () if plan is None else tuple(keep.shape for keep in plan.layers)
    title = f"{request.config.base_model}: {geometry.queries_per_kv} query heads per KV head"
    removed = "" if plan is None else f", {plan.removed_params / geometry.total_params:.2%} of all parameters removed"
    table = Table(title=title + removed)
    headings = ["layer", "KV groups", "MLP channels", "parameters", "bytes", "KV bytes/token"]
    for heading in headings + (["kept KV groups", "kept channels", "kept parameters"] if after else []):
        table.add_column(heading, justify="right")
    for index, shape in enumerate(geometry.shapes):
        params = geometry.layer_params(shape)
        kv_bytes = geometry.kv_cache_bytes_per_token((shape,), value_bytes)
        row = [index, shape.num_kv_groups, shape.mlp_width, f"{params:,}", f"{params * value_bytes:,}", f"{kv_bytes:,}"]
        if after:
            row += [after[index].num_kv_groups, after[index].mlp_width, f"{geometry.layer_params(after[index]):,}"]
        table.add_row(*map(str, row))
    other = geometry.total_params - geometry.decoder_params
    table.add_row("rest", "", "", f"{other:,}", f"{other * value_bytes:,}", "0", *[""] * (3 if after else 0))
    total_kv = geometry.kv_cache_bytes_per_token(geometry.shapes, value_bytes)
    total = geometry.total_params
    table.add_row("all", "", "", f"{total:,}", f"{total * value_bytes:,}", f"{total_kv:,}", *[""] * (3 if after else 0))
    return table
