"""Axes of charts: ranges that end at ticks, and labels that people read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hgsp.report.formats import scientific, significant

#: Ticks that an axis has at most, about.
MAX_TICKS = 7
#: Ticks within a decade where an axis spans less than half of one.
FINE = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
#: Ratio of largest to smallest value from which an axis is logarithmic.
LOG_FROM = 10.0


@dataclass(frozen=True)
class Axis:
    """A labelled range with labelled ticks."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool = False

    def fraction(self, value: float) -> float:
        """Return the position of a value, 0 at the low end and 1 at the high end."""
        low, high, at = (self.low, self.high, value)
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(max(at, low))
        return min(1.0, max(0.0, (at - low) / (high - low)))


def value_axis(label: str, values: Iterable[float], *, from_zero: bool = False) -> Axis:
    """Return a logarithmic axis where positive values spread over more than a decade, else a linear one."""
    values = list(values)
    if not from_zero and min(values) > 0 and max(values) / min(values) > LOG_FROM:
        return log_axis(label, values)
    return linear_axis(label, [0.0, *values] if from_zero else values)


def linear_axis(label: str, values: Iterable[float]) -> Axis:
    """Return a linear axis that ends at round numbers."""
    values = list(values)
    low, high = min(values), max(values)
    if low == high:
        low, high = (low - 0.5 * abs(low) - 0.5, high + 0.5 * abs(high) + 0.5) if low else (0.0, 1.0)
    step = _round_step((high - low) / (MAX_TICKS - 2))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [(number * step, _tick_label(number * step)) for number in range(first, last + 1)]
    return Axis(label, first * step, last * step, ticks)


def log_axis(label: str, values: Iterable[float]) -> Axis:
    """Return a logarithmic axis with a label at every decade, or at more places where there are few."""
    values = list(values)
    lowest, highest = math.log10(min(values)), math.log10(max(values))
    decades = range(math.floor(lowest), math.ceil(highest + 1e-9) + 1)
    spread = highest - lowest
    factors = FINE if spread < 0.5 else (1, 2, 5) if spread < 2 else (1,)
    every = max(1, math.ceil(len(decades) / MAX_TICKS))
    marks = [factor * 10.0**decade for decade in decades for factor in factors]
    low = max(mark for mark in marks if mark <= min(values) * (1 + 1e-9))
    high = min(mark for mark in marks if mark >= max(values) * (1 - 1e-9) and mark > low)
    inside = [mark for mark in marks if low <= mark <= high]
    ticks = [(mark, _tick_label(mark)) for mark in inside[:: every if len(factors) == 1 else 1]]
    return Axis(f"{label}, log scale", low, high, ticks, is_log=True)


def integer_axis(label: str, low: int, high: int) -> Axis:
    """Return an axis of whole numbers, with half a unit of margin for cells around them."""
    step = max(1, round(_round_step((high - low) / 12 or 1)))
    first = math.ceil(low / step) * step
    return Axis(label, low - 0.5, high + 0.5, [(tick, f"{tick:,}") for tick in range(first, high + 1, step)])


def names_axis(names: Sequence[str]) -> Axis:
    """Return an axis with one place for each name, the first on top when vertical."""
    places = [(float(-place), name) for place, name in enumerate(names)]
    return Axis("", -len(names) + 0.5, 0.5, places)


def _round_step(step: float) -> float:
    """Return the next step of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _tick_label(value: float) -> str:
    if value and not 1e-2 <= abs(value) < 1e6:
        return scientific(value)
    return significant(round(value, 10), 4)
