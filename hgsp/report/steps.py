"""Sections about the steps after scoring: budget search, reconstruction and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hgsp.report.axes import integer_axis, log_axis, value_axis
from hgsp.report.charts import STYLES, Panel, Series, draw, legend_of
from hgsp.report.content import Figure, LeftOut, Section, Table, Text
from hgsp.report.formats import significant
from hgsp.report.sources import Sources, read_losses

#: Points of a line; longer curves are thinned.
MAX_POINTS = 600
#: Rows of a table of points; the complete curve is in the CSV.
MAX_ROWS = 12


def search_section(sources: Sources) -> Section:
    """Return the divergence at every step of the budget search, and by number of emptied blocks."""
    report = sources.of_pruning()
    parts: list[Any] = []
    if (blocks := report.get("whole_blocks")) and blocks["kl_by_emptied_blocks"]:
        points = [(float(number), kl) for number, kl in blocks["kl_by_emptied_blocks"].items()]
        emptied = ", ".join(f"{block['kind']} of layer {block['layer']}" for block in blocks["emptied"]) or "none"
        title = "Divergence by number of emptied blocks"
        parts += [_divergences(title, "emptied blocks", sorted(points)), Text(f"Emptied blocks: {emptied}.")]
    if search := report.get("search"):
        steps = [search["kl_before"], *search["kl_of_steps"]]
        parts.append(_divergences("Divergence by step of the budget search", "step", list(enumerate(steps))))
        parts.append(
            Text(
                f"KL(dense || pruned) fell from {search['kl_before']:.4f} to {search['kl_after']:.4f} nats per token "
                f"in {search['steps']} steps. Step 0 is the plan before the search; steps that did not lower the "
                "divergence were rejected."
            )
        )
    if not parts:
        raise LeftOut("no budget search was run (--search)")
    return Section("Budget search", parts)


def _divergences(title: str, label: str, points: Sequence[tuple[float, float]]) -> Figure:
    lowest, best = [], float("inf")
    for step, divergence in points:
        best = min(best, divergence)
        lowest.append((step, best))
    series = [
        Series("lowest so far", "s0", lowest, has_markers=False),
        Series("candidate", "s1", points, is_line=False),
    ]
    x = integer_axis(label, int(points[0][0]), int(points[-1][0]))
    y = value_axis("KL, nats per token", [divergence for _, divergence in points])
    rows = [(f"{step:g}", significant(divergence)) for step, divergence in points]
    return Figure(title, draw(title, [Panel(x, y, series)], legend_of(series)), Table((label, "KL"), rows))


def reconstruction_section(sources: Sources) -> Section:
    """Return held-out errors before and after reconstruction, and the chosen ridge of every module."""
    found = sources.of_pruning().get("reconstruction")
    if not found:
        raise LeftOut("the pruned weights were not reconstructed (--reconstruct)")
    modules = found["modules"]
    names = list(dict.fromkeys(module["module"] for module in modules))
    layers = sorted({module["layer"] for module in modules})
    panels, before_and_after = [], [("s1", "before"), ("s0", "after")]
    for name in names:
        own = [module for module in modules if module["module"] == name]
        series = [
            Series(label, style, [(entry["layer"], value) for entry in own if (value := entry[f"error_{label}"])])
            for style, label in before_and_after
        ]
        values = [value for one in series for _, value in one.points]
        if values:
            panels.append(Panel(_layer_axis(layers), value_axis("error", values), series, height=150, title=name))
    if not panels:
        raise LeftOut("no module had an error to correct")
    title = "Held-out error of reconstructed modules"
    note = (
        f"Norm of the error of a block's output relative to the dense block's, on {found['held_out_sequences']} "
        "sequences that the weights were not fitted to. Modules without error are not drawn."
    )
    if few := sum(len(entry.get("few_tokens", ())) for entry in modules):
        note += f" {few:,} experts saw too few tokens to be refitted and kept their weights."
    rows = [
        (
            f"{entry['layer']} {entry['module']}",
            *(_shown(entry[key]) for key in ("error_before", "error_after", "ridge")),
        )
        for entry in modules
    ]
    figure = Figure(
        title, draw(title, panels, before_and_after), Table(("module", "before", "after", "ridge"), rows), note
    )
    return Section("Reconstruction", [figure, *_ridges(modules, names, layers)])


def _ridges(modules: Sequence[Any], names: Sequence[str], layers: Sequence[int]) -> list[Figure]:
    """Return the chart of chosen ridges, none if every module kept its weights."""
    series = [
        Series(
            name,
            style,
            [(entry["layer"], entry["ridge"]) for entry in modules if entry["module"] == name and entry["ridge"]],
            is_line=False,
        )
        for name, style in zip(names, STYLES, strict=False)
    ]
    series = [one for one in series if one.points]
    if not series:
        return []
    y = log_axis("ridge", [value for one in series for _, value in one.points])
    title = "Ridge chosen for each module"
    rows = [
        (
            one.name,
            f"{len(one.points)}",
            significant(min(v for _, v in one.points)),
            significant(max(v for _, v in one.points)),
        )
        for one in series
    ]
    note = "Relative to the mean diagonal of the inputs' second moments. A module without a point kept its weights."
    svg = draw(title, [Panel(_layer_axis(layers), y, series, height=130)], legend_of(series))
    return [Figure(title, svg, Table(("module", "refitted", "lowest", "highest"), rows), note)]


def _layer_axis(layers: Sequence[int]) -> Any:
    return integer_axis("layer", layers[0], layers[-1])


def _shown(value: float | None) -> str:
    return "" if value is None else significant(value)


def training_section(sources: Sources) -> Section:
    """Return the loss curve of the training."""
    report = sources.of_recovery()
    losses = read_losses(sources.folder)
    names = {"loss": ("training", "s0"), "eval_loss": ("held out", "s1")}
    series = [
        Series(label, style, thinned(losses[key]), has_markers=key == "eval_loss")
        for key, (label, style) in names.items()
        if losses[key]
    ]
    if not series:
        raise LeftOut("the loss curve is empty")
    steps = [int(step) for one in series for step, _ in one.points]
    x = integer_axis("optimizer step", min(steps), max(steps))
    title = f"Loss of {report['steps']} training steps"
    y = value_axis("loss, nats per token", [loss for one in series for _, loss in one.points])
    rows = [
        (f"{step:g}", label, f"{loss:.4f}")
        for key, (label, _) in names.items()
        for step, loss in thinned(losses[key], MAX_ROWS)
    ]
    svg = draw(title, [Panel(x, y, series)], legend_of(series))
    parts: list[Any] = [Figure(title, svg, Table(("step", "rows", "loss"), rows), "All steps are in loss_curve.csv.")]
    if held_out := report.get("held_out_loss"):
        parts.append(
            Text(f"Held-out loss: {held_out['first']:.4f} before training, {held_out['kept']:.4f} in the kept state.")
        )
    return Section("Training", parts)


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> list[tuple[float, float]]:
    """Return at most ``most`` points at equal distances, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]
