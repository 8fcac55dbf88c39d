"""Charts as SVG: panels of lines, points, cells and error bars. Styles are classes, coloured by the page's style sheet.

Styles ``s0`` to ``s3`` differ in colour, marker and dashes; ``cell``, ``kept`` and ``removed`` fill boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hgsp.report.axes import Axis

#: Size in user units; the page scales the chart to its width. Text is 13 units high, CHARACTER wide.
WIDTH, CHARACTER = 720, 7.2
#: Space above a panel, below it for tick labels and the label of the axis, and to its right.
ABOVE, BELOW, RIGHT = 10, 50, 18
LEGEND_LINE, TITLE_LINE = 22, 16
STYLES = ("s0", "s1", "s2", "s3")

ENVIRONMENT = Environment(
    loader=PackageLoader("hgsp.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Series:
    """Points of one style. ``errors``: half lengths of horizontal error bars, None without one."""

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    is_line: bool = True
    has_markers: bool = True
    errors: Sequence[float | None] = ()


@dataclass(frozen=True)
class Box:
    """A rectangle in the units of the axes. ``opacity`` encodes a value in [0, 1]; ``note`` is shown on hovering."""

    style: str
    x: tuple[float, float]
    y: tuple[float, float]
    note: str = ""
    opacity: float = 1.0


@dataclass(frozen=True)
class Panel:
    """One pair of axes. ``rule``: a vertical line at a value of x. ``title`` tells panels of a chart apart."""

    x: Axis
    y: Axis
    series: Sequence[Series] = ()
    boxes: Sequence[Box] = ()
    rule: float | None = None
    height: int = 200
    title: str = ""


def draw(title: str, panels: Sequence[Panel], legend: Iterable[tuple[str, str]] = ()) -> Markup:
    """Draw panels below each other with one legend of (style, name) entries."""
    left = round(max(CHARACTER * max(len(label) for _, label in panel.y.ticks) + 34 for panel in panels))
    entries, top = _placed_legend(list(legend), left)
    placed = []
    for panel in panels:
        top += ABOVE + TITLE_LINE * bool(panel.title)
        placed.append(_placed(panel, left, top))
        top += panel.height + BELOW
    template = ENVIRONMENT.get_template("chart.svg.j2")
    return Markup(template.render(title=title, width=WIDTH, height=top, legend=entries, panels=placed))


def legend_of(series: Iterable[Series]) -> list[tuple[str, str]]:
    """Return the legend of series, one entry for each name."""
    return list({one.name: (one.style, one.name) for one in series}.values())


def _placed_legend(legend: Sequence[tuple[str, str]], left: int) -> tuple[list[dict[str, Any]], int]:
    """Return the entries with their places, and the height of the legend."""
    entries, x, y = [], float(left), 14
    for style, name in legend:
        width = 34 + CHARACTER * len(name)
        if x + width > WIDTH and x > left:
            x, y = left, y + LEGEND_LINE
        entries.append({"style": style, "name": name, "x": round(x, 1), "y": y})
        x += width
    return entries, y + 8 if entries else 0


def _placed(panel: Panel, left: int, top: int) -> dict[str, Any]:
    """Return a panel in user units."""
    width, height = WIDTH - left - RIGHT, panel.height

    def at_x(value: float) -> float:
        return round(left + width * panel.x.fraction(value), 1)

    def at_y(value: float) -> float:
        return round(top + height * (1 - panel.y.fraction(value)), 1)

    return {
        "title": panel.title,
        "left": left,
        "right": left + width,
        "top": top,
        "bottom": top + height,
        "x": {"label": panel.x.label, "ticks": [(at_x(tick), label) for tick, label in panel.x.ticks]},
        "y": {"label": panel.y.label, "ticks": [(at_y(tick), label) for tick, label in panel.y.ticks]},
        "boxes": [_placed_box(box, at_x, at_y) for box in panel.boxes],
        "series": [_placed_series(series, at_x, at_y) for series in panel.series],
        "rule": None if panel.rule is None else at_x(panel.rule),
    }


def _placed_box(box: Box, at_x: Any, at_y: Any) -> dict[str, Any]:
    x0, x1 = at_x(box.x[0]), at_x(box.x[1])
    y0, y1 = at_y(box.y[1]), at_y(box.y[0])
    size = {"x": x0, "y": y0, "width": round(x1 - x0, 1), "height": round(y1 - y0, 1)}
    return {"style": box.style, "note": box.note, "opacity": round(box.opacity, 3), **size}


def _placed_series(series: Series, at_x: Any, at_y: Any) -> dict[str, Any]:
    points = [(at_x(x), at_y(y)) for x, y in series.points]
    bars = [
        (at_x(x - error), at_x(x + error), at_y(y))
        for (x, y), error in zip(series.points, series.errors, strict=False)
        if error is not None
    ]
    return {
        "style": series.style,
        "path": " ".join(f"{x},{y}" for x, y in points) if series.is_line and len(points) > 1 else "",
        "markers": points if series.has_markers or len(points) == 1 else [],
        "bars": bars,
    }
