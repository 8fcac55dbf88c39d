"""Several results on one page: sizes, perplexities, accuracies, kept groups and losses side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hgsp.console.report_schema import ROLES, TOKEN_PPL
from hgsp.errors import InputError
from hgsp.models.kinds import GROUP_KINDS, KIND_NAMED
from hgsp.report.axes import integer_axis, names_axis, value_axis
from hgsp.report.charts import STYLES, Box, Panel, Series, draw, legend_of
from hgsp.report.content import Figure, LeftOut, Page, Section, Table, Text
from hgsp.report.differences import differences_table
from hgsp.report.formats import accuracy, percent, perplexity, seconds, significant, with_prefix
from hgsp.report.layers import dense_counts
from hgsp.report.measured import (
    ACCURACIES,
    ROW_HEIGHT,
    STYLE_OF_ROLE,
    Measured,
    dot_series,
    perplexities,
    points_of,
    reach_of,
    task_metrics,
)
from hgsp.report.overview import model_of, verdict_of, warnings_of
from hgsp.report.page import HTML, MARKDOWN, has_foreign_page, write_page
from hgsp.report.sources import SCHEMAS, Record, Sources, read_losses, read_sources
from hgsp.report.steps import thinned

#: Quantity -> run -> role -> (value, standard error).
Values = dict[str, dict[str, dict[str, Measured]]]
Runs = Mapping[str, Sources]


def comparison_of(results: Sequence[Sources]) -> Page:
    """Return the page that compares results."""
    runs = dict(zip(run_names(results), results, strict=True))
    sections, left_out = [], []
    for title, build in SECTIONS.items():
        try:
            sections.append(build(runs))
        except LeftOut as reason:
            left_out.append(f"{title}: {reason}.")
    return Page(
        title=f"{len(runs)} results compared",
        label="",
        subtitle=", ".join(dict.fromkeys(map(model_of, results))),
        verdict=None,
        cards=(),
        warnings=[f"{name}: {warning}" for name, sources in runs.items() for warning in warnings_of(sources)],
        sections=sections,
        left_out=left_out,
    )


def write_comparison(folders: Sequence[Path], output: Path) -> tuple[str, ...]:
    """Write the page that compares results, without those that cannot be read; return the names of its files.

    A folder that is a result itself keeps its own page, and no page that is not ours is replaced.
    """
    if any((output / name).is_file() for name in SCHEMAS) or has_foreign_page(output):
        return ()
    results, skipped = [], []
    for folder in folders:
        try:
            results.append(read_sources(folder))
        except InputError as error:
            skipped.append(f"skipped: {error}")
    page = comparison_of(results)
    write_page(replace(page, warnings=[*page.warnings, *skipped]), output)
    return HTML, MARKDOWN


def run_names(results: Sequence[Sources]) -> list[str]:
    """Return the names of folders, with as many parents as tell them apart."""
    paths = [sources.folder.resolve() for sources in results]
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(set(paths)):
        depth += 1
    return [str(Path(*path.parts[-depth:])) for path in paths]


def _run_section(runs: Runs) -> Section:
    head = ("run", "model", "method", "removed", "of decoder", "parameters", "weights", "KV / token", "time", "verdict")
    rows = [(name, *_run_cells(sources)) for name, sources in runs.items()]
    columns = len(head) if any(row[-1] for row in rows) else len(head) - 1
    return Section("Runs", (Table(head[:columns], [row[:columns] for row in rows]),))


def _run_cells(sources: Sources) -> list[str]:
    report, verdict = sources.pruning, verdict_of(sources) or ""
    if report is None:
        return [model_of(sources), *[""] * 7, verdict]
    spent = sum(report["timings_s"].values()) + sum((sources.recovery or Record()).get("timings_s", {}).values())
    return [
        model_of(sources),
        report["importance_method"] + ", recovered" * (sources.recovery is not None),
        percent(report["reached_ratio"]),
        percent(report["reached_ratio_decoder"]),
        with_prefix(report["params_after"]),
        with_prefix(report["weight_bytes_after"], "B"),
        with_prefix(report["kv_cache_bytes_per_token_after"], "B"),
        seconds(spent),
        verdict.partition(":")[0],
    ]


def _perplexity_section(runs: Runs) -> Section:
    found: Values = {}
    for name, sources in runs.items():
        for (text, protocol), values in perplexities(sources).items():
            found.setdefault(f"{text}, {protocol}", {})[name] = values
    if not found:
        raise LeftOut("no perplexity was measured")
    note = "Lower is better; bars are one standard error. Each panel is one protocol: numbers in it are comparable."
    return Section("Perplexity", (_panels("Perplexity by run", "perplexity", found), Text(note)))


def _task_section(runs: Runs) -> Section:
    found: Values = {}
    for name, sources in runs.items():
        for role, item, metric in task_metrics(sources):
            if metric["name"] in ACCURACIES and metric["name"] != TOKEN_PPL:
                quantity = f"{item['task']} {metric['name']}, {item['num_items']:,} items"
                measured = (metric["value"], metric.get("stderr"))
                found.setdefault(quantity, {}).setdefault(name, {})[role] = measured
    if not found:
        raise LeftOut("no task was measured; hgsp evaluate --tasks adds them")
    note = "Higher is better; bars are one standard error."
    parts: list[Figure | Table | Text] = [_panels("Accuracy by run", "accuracy", found), Text(note)]
    differences = differences_table(runs)
    if differences is not None:
        note = "Differences over the same items, ± one standard error, paired by item: smaller than the bars suggest."
        parts += [differences, Text(note)]
    return Section("Tasks", tuple(parts))


def _panels(title: str, label: str, found: Values) -> Figure:
    """Draw one panel for each quantity, one row of points for each run."""
    panels, rows = [], []
    for quantity, by_run in found.items():
        points = points_of(ROLES, by_run.values())
        axis = value_axis(label, reach_of(points))
        height = ROW_HEIGHT * len(by_run) + 10
        panels.append(Panel(axis, names_axis(list(by_run)), dot_series(points), height=height, title=quantity))
        for run, values in by_run.items():
            shown = [_shown(label, values.get(role)) for role in ROLES]
            rows.append((quantity, run, *shown))
    present = {role for by_run in found.values() for values in by_run.values() for role in values}
    legend = [(STYLE_OF_ROLE[role], role) for role in ROLES if role in present]
    return Figure(title, draw(title, panels, legend), Table(("quantity", "run", *ROLES), rows))


def _shown(label: str, measured: Measured | None) -> str:
    if measured is None:
        return ""
    return perplexity(*measured) if label == "perplexity" else accuracy(*measured)


def _layer_section(runs: Runs) -> Section:
    """Return a heat map of the groups kept: a row for each run, a column for each layer."""
    kept: dict[str, dict[str, dict[int, float]]] = {f"{kind.label} kept": {} for kind in GROUP_KINDS}
    for name, sources in runs.items():
        try:
            counts = dense_counts(sources)
        except LeftOut:
            continue  # it has no row
        for kind in map(KIND_NAMED.__getitem__, counts):
            kept[f"{kind.label} kept"][name] = {
                entry["layer"]: len(entry[f"kept_{kind.kept}"]) / max(1, counts[kind.name][entry["layer"]])
                for entry in sources.of_pruning()["layers"]
            }
    kept = {title: by_run for title, by_run in kept.items() if by_run}
    if not kept:
        raise LeftOut("no run has a pruning report with the sizes of its layers")
    panels = [_heat_panel(title, by_run) for title, by_run in kept.items()]
    title = "Groups kept by layer"
    legend = [("cell", "all kept; the lighter, the fewer"), ("removed", "none kept")]
    rows = [
        (title, run, *(percent(f(list(by_layer.values()))) for f in (min, _mean, max)))
        for title, by_run in kept.items()
        for run, by_layer in by_run.items()
    ]
    table = Table(("groups", "run", "least of a layer", "mean", "most"), rows)
    return Section("Layers", (Figure(title, draw(title, panels, legend), table),))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _heat_panel(title: str, by_run: Mapping[str, Mapping[int, float]]) -> Panel:
    boxes = []
    for place, (run, by_layer) in enumerate(by_run.items()):
        for layer, fraction in by_layer.items():
            cell = (layer - 0.48, layer + 0.48), (-place - 0.42, -place + 0.42)
            note = f"{run}, layer {layer}: {percent(fraction)}"
            boxes.append(
                Box("cell" if fraction else "removed", *cell, note, 0.15 + 0.85 * fraction if fraction else 1.0)
            )
    layers = [layer for by_layer in by_run.values() for layer in by_layer]
    x = integer_axis("layer", min(layers), max(layers))
    return Panel(x, names_axis(list(by_run)), boxes=boxes, height=26 * len(by_run), title=title)


def _loss_section(runs: Runs) -> Section:
    trained = {name: sources for name, sources in runs.items() if sources.recovery is not None}
    curves = {}
    for name, sources in trained.items():
        try:
            losses = read_losses(sources.folder)
        except LeftOut:
            continue  # the pruned folder of a recovered model names the training, but has no curve
        curves[name] = losses["eval_loss"] or losses["loss"]
    curves = {name: curve for name, curve in curves.items() if curve}
    if not curves:
        raise LeftOut("no run has a loss curve")
    if len(curves) > len(STYLES):
        raise LeftOut(f"more than {len(STYLES)} curves cannot be told apart")
    series = [Series(name, style, thinned(curve)) for style, (name, curve) in zip(STYLES, curves.items(), strict=False)]
    steps = [int(step) for curve in curves.values() for step, _ in curve]
    y = value_axis("loss, nats per token", [loss for curve in curves.values() for _, loss in curve])
    panel = Panel(integer_axis("optimizer step", min(steps), max(steps)), y, series)
    title = "Held-out loss, or training loss where nothing was held out"
    rows = [(name, significant(curve[0][1], 4), significant(curve[-1][1], 4)) for name, curve in curves.items()]
    return Section(
        "Training", (Figure(title, draw(title, [panel], legend_of(series)), Table(("run", "first", "last"), rows)),)
    )


SECTIONS = {
    "Runs": _run_section,
    "Perplexity": _perplexity_section,
    "Tasks": _task_section,
    "Layers": _layer_section,
    "Training": _loss_section,
}
