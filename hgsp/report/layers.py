"""Sections about groups: those kept in each layer, the distribution of their scores, and the prior."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from hgsp.models.kinds import GROUP_KINDS, KIND_NAMED, GroupKind, kinds_among
from hgsp.report.axes import Axis, integer_axis, linear_axis, log_axis, value_axis
from hgsp.report.charts import Box, Panel, Series, draw, legend_of
from hgsp.report.content import Figure, LeftOut, Section, Table, Text
from hgsp.report.formats import percent, significant
from hgsp.report.sources import GroupColumns, Sources, read_group_table

#: KV heads up to which each is a cell of its own; more are one cell for each layer.
MAX_CELLS = 16
#: Bins of a distribution.
BINS = 48

#: Layer -> number of groups of the dense model.
DenseCounts = Mapping[int, int]


def layer_section(sources: Sources) -> Section:
    """Return the map of the kept groups of every kind by layer."""
    report = sources.of_pruning()
    layers = report["layers"]
    counts = dense_counts(sources)
    kinds = tuple(map(KIND_NAMED.__getitem__, counts))
    kept = {kind.name: {entry["layer"]: entry[f"kept_{kind.kept}"] for entry in layers} for kind in kinds}
    indices = sorted(kept["attention"])
    panels = [_panel(kind, indices, kept[kind.name], counts[kind.name]) for kind in kinds]
    rows = [
        (
            str(layer),
            *(f"{len(kept[kind.name][layer]):,} of {counts[kind.name][layer]:,}" for kind in kinds),
            percent(next(entry["kept_ratio"] for entry in layers if entry["layer"] == layer)),
        )
        for layer in indices
    ]
    title = f"{' and '.join(kind.label for kind in kinds)} kept by layer"
    legend = [("cell", "kept (the darker, the more of the layer)"), ("removed", "removed")]
    note = "A KV group is one key/value head with its query heads. Layers are those of the dense model."
    table = Table(("layer", *(kind.label for kind in kinds), "parameters kept"), rows)
    return Section("Layers", (Figure(title, draw(title, panels, legend), table, note),))


def dense_counts(sources: Sources) -> dict[str, dict[int, int]]:
    """Return kind -> layer -> groups of the dense model, from the report, or for older reports from the table.

    Raises:
        LeftOut: neither has them.
    """
    layers = sources.of_pruning()["layers"]
    if layers and "num_kv_groups" in layers[0]:
        present = {kind.name for kind in GROUP_KINDS for entry in layers if entry.get(kind.dense_key)}
        return {kind.name: {entry["layer"]: entry[kind.dense_key] for entry in layers} for kind in kinds_among(present)}
    table = read_group_table(sources.folder)
    return {
        kind: {entry["layer"]: int(columns.layers.get(entry["layer"], [0])[0]) for entry in layers}
        for kind, columns in table.items()
    }


def _panel(kind: GroupKind, indices: Sequence[int], kept: Mapping[int, Sequence[int]], counts: DenseCounts) -> Panel:
    if kind.name == "attention":
        return _kv_panel(indices, kept, counts)
    return _bars_panel(indices, kept, counts, kind.label)


def _kv_panel(indices: Sequence[int], kept: Mapping[int, Sequence[int]], counts: DenseCounts) -> Panel:
    """Draw a cell for each KV group, or for models with many heads a bar for each layer."""
    most = max(counts.values())
    if most > MAX_CELLS:
        return _bars_panel(indices, kept, counts, "KV groups")
    boxes = []
    for layer in indices:
        chosen = set(kept[layer])
        for group in range(counts[layer]):
            state = "kept" if group in chosen else "removed"
            note = f"layer {layer}, KV group {group}: {state}"
            style = "cell" if group in chosen else "removed"
            boxes.append(Box(style, _cell(layer), _cell(group), note))
    x = integer_axis("layer", indices[0], indices[-1])
    return Panel(x, integer_axis("KV group", 0, max(most - 1, 0)), boxes=boxes, height=max(70, 22 * most))


def _bars_panel(indices: Sequence[int], kept: Mapping[int, Sequence[int]], counts: DenseCounts, name: str) -> Panel:
    """Draw a bar for each layer, from 0 to the kept number, over the outline of the dense number."""
    boxes = []
    for layer in indices:
        number, total = len(kept[layer]), counts[layer]
        fraction = number / total if total else 0.0
        note = f"layer {layer}: {number:,} of {total:,} {name} kept ({percent(fraction)})"
        boxes.append(Box("removed", _cell(layer), (number, total), note))
        boxes.append(Box("cell", _cell(layer), (0, number), note, opacity=0.25 + 0.75 * fraction**2))
    y = linear_axis(name, [0.0, float(max(counts.values()) or 1)])
    return Panel(integer_axis("layer", indices[0], indices[-1]), y, boxes=boxes)


def _cell(index: int) -> tuple[float, float]:
    return index - 0.46, index + 0.46


def score_section(sources: Sources) -> Section:
    """Return the distributions of the scores of kept and removed groups, with the selection threshold."""
    if sources.pruning is None:
        raise LeftOut("this folder has no pruning report")
    table = read_group_table(sources.folder)
    every = sorted(score for columns in table.values() for score in columns.scores)
    removed = sum(not kept for columns in table.values() for kept in columns.kept)
    positive = [score for score in every if score > 0]
    if len(positive) < 2 or positive[0] == positive[-1]:
        raise LeftOut("all scores are equal, or none is positive")
    threshold = every[removed] if 0 < removed < len(every) else None
    axis = log_axis("score", positive)
    panels = [
        _histogram(columns, axis, threshold if threshold and threshold > 0 else None, KIND_NAMED[kind].label)
        for kind, columns in table.items()
    ]
    rows = [row for kind, columns in table.items() for row in _quantiles(columns, KIND_NAMED[kind].label)]
    title = "Scores of kept and removed groups"
    note = (
        "Score = importance per removed parameter × prior, as in global_group_table.csv. Dashed: the score below which "
        "there are as many groups as were removed. Removed groups beyond it, and kept ones below it, follow from "
        "widths in multiples, minimum sizes, frozen layers and groups of different size."
    )
    if hidden := len(every) - len(positive):
        note += f" {hidden:,} groups whose score is not positive are not drawn."
    figure = Figure(title, draw(title, panels, [("cell", "kept"), ("gone", "removed")]), _score_table(rows), note)
    return Section("Scores", (figure,))


def _score_table(rows: Sequence[Sequence[str]]) -> Table:
    return Table(("groups", "number", "5 % below", "median", "95 % below"), rows)


def _histogram(columns: GroupColumns, axis: Axis, threshold: float | None, name: str) -> Panel:
    """Draw stacked counts of removed and kept groups in bins of equal width on the axis."""
    counts: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    for score, kept in zip(columns.scores, columns.kept, strict=True):
        if score > 0:
            counts[kept][min(BINS - 1, int(BINS * axis.fraction(score)))] += 1
    ratio = (axis.high / axis.low) ** (1 / BINS)
    boxes = []
    for place in range(BINS):
        left, right = axis.low * ratio**place, axis.low * ratio ** (place + 1)
        gone, stays = counts[False][place], counts[True][place]
        note = f"scores from {significant(left)} to {significant(right)}: {stays:,} kept, {gone:,} removed"
        boxes += [Box("gone", (left, right), (0, gone), note)] * bool(gone)
        boxes += [Box("cell", (left, right), (gone, gone + stays), note)] * bool(stays)
    highest = max([counts[True][place] + counts[False][place] for place in range(BINS)])
    return Panel(axis, linear_axis(name, [0.0, float(max(highest, 1))]), boxes=boxes, rule=threshold, height=150)


def _quantiles(columns: GroupColumns, name: str) -> list[tuple[str, ...]]:
    rows = []
    for state in (True, False):
        chosen = sorted(score for score, kept in zip(columns.scores, columns.kept, strict=True) if kept is state)
        if chosen:
            places = (chosen[math.floor(0.05 * len(chosen))], median(chosen), chosen[math.ceil(0.95 * len(chosen)) - 1])
            label = f"{name} {'kept' if state else 'removed'}"
            rows.append((label, f"{len(chosen):,}", *map(significant, places)))
    return rows


def prior_section(sources: Sources) -> Section:
    """Return the H-GSP prior of every layer."""
    report = sources.of_pruning()
    table = read_group_table(sources.folder)
    priors = {
        kind: {layer: counts[2] for layer, counts in sorted(columns.layers.items())} for kind, columns in table.items()
    }
    if all(prior == 1 for by_layer in priors.values() for prior in by_layer.values()):
        raise LeftOut("no prior was used (--temperature 0)")
    series = [
        Series(
            KIND_NAMED[kind].label, KIND_NAMED[kind].style, [(float(layer), prior) for layer, prior in by_layer.items()]
        )
        for kind, by_layer in priors.items()
        if by_layer
    ]
    layers = sorted({layer for by_layer in priors.values() for layer in by_layer})
    values = [prior for one in series for _, prior in one.points]
    scoring = report["scoring"]
    slopes = {"depth_slope": "depth slope", "attention_slope": "attention slope"}
    named = "".join(f", {label} {scoring[name]:g}" for name, label in slopes.items() if scoring.get(name))
    title = f"Prior by layer, H-GSP temperature {scoring['temperature']:g}{named}"
    panel = Panel(integer_axis("layer", layers[0], layers[-1]), value_axis("prior", values), series)
    rows = [
        (str(layer), *(significant(priors[kind][layer]) if layer in priors[kind] else "" for kind in priors))
        for layer in layers
    ]
    table_of_priors = Table(("layer", *(KIND_NAMED[kind].label for kind in priors)), rows)
    text = Text("The prior multiplies scores: groups of a layer with a high prior are kept longer.")
    return Section("Prior", (Figure(title, draw(title, [panel], legend_of(series)), table_of_priors), text))
