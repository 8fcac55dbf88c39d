"""The end of a pruning run on screen: sizes, perplexities, kept groups per layer, the verdict, and what comes next."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from hgsp.console.log_file import show
from hgsp.console.tables import WIDTH, format_number, new_table
from hgsp.environment import in_gib
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.models.kinds import GROUP_KINDS
from hgsp.pipeline.hints import flags_in, hint
from hgsp.pipeline.next_steps import after_pruning
from hgsp.pipeline.request import Request
from hgsp.pruning.names import RATIO_PHRASES

LOG = logging.getLogger("hgsp")


def show_result(request: Request, content: Mapping[str, Any], target: Path, told: Collection[str] = ()) -> None:
    """Show the result of one ratio.

    Args:
        content: of ``pruning_analysis.json``.
        target: the result folder.
        told: warnings that the run began with.
    """
    config = request.config
    for warning in content["warnings"]:
        if warning not in told:
            LOG.warning("%s", warning)
    show(closing_table(content))
    after = [
        LayerShape(*(len(layer.get(f"kept_{kind.kept}", ())) for kind in GROUP_KINDS)) for layer in content["layers"]
    ]
    LOG.info("%s", layer_summary(request.geometry, after))
    verdict = content["verdict"]
    LOG.info(
        "verdict: %s", "not judged: nothing was measured" if verdict is None else "{name}: {reason}".format(**verdict)
    )
    LOG.info("result: %s", target)
    device = content["environment"]["device"]
    for command in after_pruning(config, target, verdict and verdict["name"], device):
        LOG.info("next: %s", command)
    method, ratio = content["importance_method"], content["reached_ratio_decoder"]
    if advice := hint(config.recipe, method, ratio, flags_in(content["command"])):
        LOG.info("%s", advice)


def closing_table(report: Mapping[str, Any]) -> Table:
    """Return the table of sizes and perplexities before and after."""
    title = f"{Path(report['base_model']).name}\n{_removed(report)} removed"
    table = new_table(title, "", "before", "after", "change")
    for label, key in (
        ("parameters", "params"),
        ("weight bytes", "weight_bytes"),
        ("KV bytes per token", "kv_cache_bytes_per_token"),
    ):
        before, after = report[f"{key}_before"], report[f"{key}_after"]
        table.add_row(label, f"{before:,}", f"{after:,}", f"{after / before - 1:+.1%}")
    measured = report["evaluation"]
    for name, result in measured.get("after", {}).items():
        dense = measured["before"][name]["ppl"]
        label = f"PPL {name} ({result['windows']} x {result['seq_len']})"
        change = f"x {format_number(result['ppl'] / dense)}"
        table.add_row(label, format_number(dense), format_number(result["ppl"]), change)
    if speed := report["speed"]:
        for label, key in (("predicted", "predicted_speedup"), ("measured", "measured_speedup")):
            if speed[key] is not None:
                table.add_row(f"speed, {label} ({speed['workload']})", "", "", f"x {speed[key]:.2f}")
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in report["timings_s"].items())
    removed = ", ".join(map(str, report["removed_layers"])) or "none"
    table.caption = (
        f"{_asked(report)}; whole layers removed: {removed}\n"
        f"seconds: {seconds}; peak memory {in_gib(report['peak_memory_bytes'])}"
    )
    return table


def _removed(report: Mapping[str, Any]) -> str:
    return f"{report['reached_ratio']:.2%} of all parameters, {report['reached_ratio_decoder']:.2%} of the decoder's"


def _asked(report: Mapping[str, Any]) -> str:
    """Say what was asked for, and what a target reached."""
    if target := report["target"]:
        return f"--{target['name']} {target['asked']:,g}: {target['reached']:,.4g}"
    return f"asked {report['asked_ratio']:.4f} of {RATIO_PHRASES[report['asked_ratio_of']]}"


def layer_summary(geometry: Geometry, after: Sequence[LayerShape]) -> str:
    """Return the kept groups of every kind and layer, in columns that fit ``WIDTH``.

    Args:
        after: sizes of every dense layer after pruning.
    """
    sizes = [[str(shape.size_of(kind.name)) for kind in geometry.kinds] for shape in after]
    wide = [max(map(len, column)) for column in zip(*sizes, strict=True)]
    digits = len(str(len(sizes) - 1))
    padded = (" ".join(size.rjust(width) for size, width in zip(row, wide, strict=True)) for row in sizes)
    cells = [f"{index:{digits}}: {row}" for index, row in enumerate(padded)]
    columns = max(1, (WIDTH + 3) // (len(cells[0]) + 3))
    rows = -(-len(cells) // columns)
    lines = ["   ".join(cells[row::rows]) for row in range(rows)]  # layers read down the columns
    most = (max(shape.size_of(kind.name) for shape in geometry.shapes) for kind in geometry.kinds)
    named = ", ".join(f"{kind.label} of {size:,}" for kind, size in zip(geometry.kinds, most, strict=True))
    return "\n".join([f"kept in each layer: {named}", *lines])
