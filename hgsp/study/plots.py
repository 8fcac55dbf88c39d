"""Plots of the study: perplexity by size, and the groups kept by layer."""

from __future__ import annotations

import logging
import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgsp.console.report_schema import DENSE, PRUNED, RECOVERED, TOKEN_PPL
from hgsp.report.axes import log_axis
from hgsp.report.content import LeftOut
from hgsp.report.sources import GROUP_TABLE, read_group_table
from hgsp.study.collect import Quantity, Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG = logging.getLogger(__name__)

MARKERS = "osD^vP*X"
MAX_COLUMNS = 3
#: Widths in inches of a character in the legend, and of an entry's line and padding.
CHARACTER_INCHES, ENTRY_INCHES = 0.085, 0.7
#: Characters per line of a panel's title.
TITLE_WIDTH = 40
#: Kind of group -> axis label, from top to bottom.
KINDS = {"attention": "KV groups", "mlp": "MLP channels"}


def lines_of(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Group results that differ only in the ratio into labelled lines.

    A model's label adds the setting if its lines differ in it, and the folder if they differ in the seed or in another
    detail.
    """
    lines = defaultdict(list)
    for result in results:
        lines[result.model, result.setting, result.scoring].append(result)
    labelled: dict[str, list[Result]] = {}
    for (model, setting, scoring), line in lines.items():
        others = [key[1] for key in lines if key[0] == model and key[2] != scoring]
        start = f"{model} ({line[0].gqa_ratio:g}:1" + f", {setting}" * any(other != setting for other in others)
        folder = line[0].folder.absolute()
        places = (f", {folder.parent.name}", f", {folder.parent.name}/{folder.name}", f", {folder}")
        labels = [f"{start}{place})" for place in (places if setting in others else ("",))]
        label = next(label for label in labels if label not in labelled)
        labelled[label] = sorted(line, key=lambda result: result.params)
    return labelled


def measured_texts(results: Sequence[Result]) -> list[Quantity]:
    """Return the perplexities measured by the same protocol on a pruned model and its dense model."""
    found = {q for result in results for q, values in result.values.items() if q.metric == TOKEN_PPL}
    return sorted(q for q in found if any({DENSE, PRUNED} <= set(r.values.get(q, {})) for r in results))


def plot_perplexity(results: Sequence[Result]) -> Figure | None:
    """Plot perplexity relative to the dense model against the parameters kept; None without perplexities."""
    from matplotlib.figure import Figure

    texts = measured_texts(results)
    if not texts:
        return None
    lines = lines_of(results)
    columns = min(MAX_COLUMNS, len(texts))
    rows = math.ceil(len(texts) / columns)
    entry = ENTRY_INCHES + CHARACTER_INCHES * max(len(f"{label}, recovered") for label in lines)
    width = max(4.6 * columns, 7.5, entry + 0.3)
    per_row = max(1, int(width / entry))
    entries = len(lines) + sum(
        any(RECOVERED in values for r in line for values in r.values.values()) for line in lines.values()
    )
    height = 3.8 * rows + 0.7 + 0.25 * math.ceil(entries / per_row)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, text in zip(grid, texts, strict=False):
        for number, (label, line) in enumerate(lines.items()):
            _ratio_line(axes, line, text, label, number)
        axes.set_title(f"{text.task}, {text.protocol} tokens", fontsize="medium")
    for axes in grid[len(texts) :]:
        axes.set_visible(False)
    _ratio_axes(grid[: len(texts)], columns)
    figure.suptitle("Perplexity after pruning, relative to the dense model")
    handles = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=per_row, frameon=False)
    return figure


def _ratio_line(axes: Any, line: Sequence[Result], text: Quantity, label: str, number: int) -> None:
    marker = MARKERS[number % len(MARKERS)]
    width = max(1.2, 4.0 - number)  # earlier lines stay visible under later ones
    for role, name, style in ((PRUNED, label, "-"), (RECOVERED, f"{label}, recovered", "--")):
        points = [
            (100 * result.params / result.params_before, values[role] / values[DENSE])
            for result in line
            if {DENSE, role} <= set(values := result.values.get(text, {}))
        ]
        if points:
            points = [*points, (100.0, 1.0)] if role == PRUNED else points
            fill = f"C{number % 10}" if role == PRUNED else "white"
            shape = {"marker": marker, "markersize": width + 3, "markerfacecolor": fill, "linewidth": width}
            axes.plot(*zip(*points, strict=True), style, label=name, color=f"C{number % 10}", **shape)


def _ratio_axes(panels: Any, columns: int) -> None:
    """Format the axes of all panels; their scales are shared."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, MultipleLocator, NullLocator

    first = panels[0]
    first.invert_xaxis()
    first.set_yscale("log")
    # a locator of powers leaves one label where all ratios are close; limits and ticks are those of the pages
    scale = log_axis("", [value for axes in panels for line in axes.get_lines() for value in line.get_ydata()])
    first.set_ylim(scale.low, scale.high)
    for number, axes in enumerate(panels):
        axes.xaxis.set_major_locator(MultipleLocator(10))
        axes.yaxis.set_major_locator(FixedLocator([tick for tick, _ in scale.ticks]))
        axes.yaxis.set_major_formatter(FixedFormatter([label for _, label in scale.ticks]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        if number + columns >= len(panels):
            axes.set_xlabel("parameters kept (%)")
            axes.tick_params(labelbottom=True)
        if number % columns == 0:
            axes.set_ylabel("perplexity / dense perplexity")


def kept_fractions(folder: Path) -> dict[str, list[float]] | None:
    """Read the fraction of groups each layer keeps, by kind, from the group table; None if there is none."""
    try:
        table = read_group_table(folder)
    except LeftOut as reason:
        if (folder / GROUP_TABLE).exists():
            LOG.warning("%s: %s", folder, reason)
        return None
    return {
        kind: [columns.layers[n][1] / columns.layers[n][0] for n in sorted(columns.layers)]
        for kind, columns in table.items()
    }


def plot_kept_groups(results: Sequence[Result]) -> Figure | None:
    """Plot the fractions of KV groups and MLP channels kept by layer, two panels per model; None without tables."""
    from matplotlib.figure import Figure

    panels = {}
    for label, line in lines_of(results).items():
        cells = [(result.asked_ratio, kept_fractions(result.folder)) for result in line]
        known = sorted((ratio, fractions) for ratio, fractions in cells if fractions is not None)
        if known:
            panels[label] = known
    if not panels:
        return None
    columns = min(MAX_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    ratios = sorted({ratio for known in panels.values() for ratio, _ in known})
    figure = Figure(figsize=(max(4.6 * columns, 6.5), 4.2 * rows + 0.9), layout="constrained")
    grid = figure.subplots(2 * rows, columns, sharey=True, squeeze=False)
    for number, (label, known) in enumerate(panels.items()):
        row, column = divmod(number, columns)
        _layer_panel(grid[2 * row : 2 * row + 2, column], known, label, ratios)
    for number in range(len(panels), rows * columns):
        for axes in grid[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]:
            axes.set_visible(False)
    figure.suptitle("Groups kept by layer")
    lines = {ratio: _line_style(ratio, ratios) for ratio in ratios}
    _layer_legend(figure, lines)
    return figure


def _layer_panel(
    panel: Any, known: Sequence[tuple[float, dict[str, list[float]]]], label: str, ratios: Sequence[float]
) -> None:
    from matplotlib.ticker import MaxNLocator

    for axes, (kind, name) in zip(panel, KINDS.items(), strict=True):
        for ratio, fractions in known:
            values = [100 * value for value in fractions[kind]]
            axes.plot(range(len(values)), values, marker=".", **_line_style(ratio, ratios))
        axes.set_ylim(-4, 104)
        axes.grid(alpha=0.3)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(f"{name} kept (%)")
    panel[0].set_title(textwrap.fill(label, TITLE_WIDTH), fontsize="medium")
    panel[0].tick_params(labelbottom=False)
    for axes in panel:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel[1].set_xlabel("layer")


def _line_style(ratio: float, ratios: Sequence[float]) -> dict[str, Any]:
    """Return colour and width; earlier lines are wider, to stay visible where lines coincide."""
    number = ratios.index(ratio)
    return {"color": f"C{number % 10}", "linewidth": max(1.0, 3.0 - number)}


def _layer_legend(figure: Figure, lines: dict[float, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=f"{100 * ratio:g} % removed", **line) for ratio, line in lines.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False)
