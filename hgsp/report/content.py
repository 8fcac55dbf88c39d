"""The content of a report, the same for HTML and Markdown: sections of texts, tables, figures, commands and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


class LeftOut(Exception):  # noqa: N818 - a section that has no data is no error
    """The reason why a section is not in a report: nothing in the folder to make it from."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Code:
    """A command to copy."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Table:
    """A table of formatted cells; the first column holds the labels of the rows."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A chart, with its numbers as a table for Markdown and screen readers."""

    kind: ClassVar[str] = "figure"
    title: str
    svg: Markup
    data: Table
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """Continuations of one prompt: (model, text) pairs."""

    kind: ClassVar[str] = "sample"
    prompt: str
    texts: Sequence[tuple[str, str]]


Part = Text | Code | Table | Figure | Sample


@dataclass(frozen=True)
class Section:
    """A titled part of a report."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """The id of the section in the page."""
        return "-".join(self.title.lower().split())


@dataclass(frozen=True)
class Card:
    """A number shown large: its name, its value, and how it changed."""

    name: str
    value: str
    change: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report.

    ``label`` stands beside every figure, which may be copied without the rest; ``left_out`` holds one sentence for each
    section that could not be made.
    """

    title: str
    label: str
    subtitle: str
    verdict: str | None
    cards: Sequence[Card]
    warnings: Sequence[str]
    sections: Sequence[Section]
    left_out: Sequence[str]
