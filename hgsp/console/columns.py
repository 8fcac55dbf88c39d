"""Tables on the screen: aligned columns, of which the last is wrapped."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 80


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align columns; the last is wrapped so that no line is longer than ``WIDTH``."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = []
    for row in rows:
        head = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + "  "
        first, *others = textwrap.wrap(row[-1], WIDTH - len(head), break_on_hyphens=False) or [""]
        lines += [f"{head}{first}".rstrip(), *(" " * len(head) + part for part in others)]
    return lines
