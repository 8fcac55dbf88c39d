"""Tables for the terminal, in which numbers are never cut, and the formats of numbers in them."""

from __future__ import annotations

from rich import box
from rich.table import Table

#: Columns of the narrowest terminal that tables are made for.
WIDTH = 80
#: Numbers from here on are shown in scientific notation.
LARGEST_PLAIN = 1e6


def new_table(title: str, *headings: str, frame: box.Box = box.SIMPLE_HEAD) -> Table:
    """Return a table at least ``WIDTH`` wide, whose first column wraps and whose others, right-aligned, do not."""
    table = Table(title=title, box=frame, caption_justify="left", pad_edge=False, padding=0, min_width=WIDTH)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
    return table


def format_number(value: float, decimals: int = 2) -> str:
    """Format a number with fixed decimals: 37.81; from a million on in scientific notation: 7.323e+18."""
    return f"{value:.{decimals}f}" if abs(value) < LARGEST_PLAIN else f"{value:.3e}"


def format_bytes(count: float) -> str:
    """Format a number of bytes with a decimal prefix: 13.2 GB."""
    for prefix, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {prefix}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """Format an estimated duration coarsely: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
