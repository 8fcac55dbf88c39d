"""report.html and report.md beside a result, made from its files; the HTML loads nothing and holds no script."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from hgsp.environment import process_rank, write_atomically
from hgsp.errors import InputError
from hgsp.report import layers, measured, overview, steps
from hgsp.report.charts import ENVIRONMENT
from hgsp.report.content import LeftOut, Page, Section
from hgsp.report.sources import SCHEMAS, Sources, read_sources

LOG = logging.getLogger(__name__)
HTML, MARKDOWN = "report.html", "report.md"
#: Found in every page of ours, so that no other file is replaced.
MARK = '<meta name="generator" content="hgsp">'

Builder = Callable[[Sources], Section]
#: Sections in their order, by their titles.
SECTIONS: dict[str, Builder] = {
    "How it was made": overview.command_section,
    "Size": overview.size_section,
    "Perplexity": measured.perplexity_section,
    "Tasks": measured.task_section,
    "Layers": layers.layer_section,
    "Scores": layers.score_section,
    "Prior": layers.prior_section,
    "Budget search": steps.search_section,
    "Reconstruction": steps.reconstruction_section,
    "Training": steps.training_section,
    "Speed and memory": measured.speed_section,
    "Samples": measured.sample_section,
    "Settings, time and memory": overview.environment_section,
}
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#&~])")


def write_report(folder: Path) -> None:
    """Write the report into the folder of a finished result; files that cannot be read or written are a warning."""
    try:
        write_page(page_of(read_sources(folder)), folder)
    except (InputError, OSError) as error:
        LOG.warning("no %s in %s: %s", HTML, folder, error)
    else:
        LOG.info("report: %s", folder / HTML)


def write_evaluation_report(folder: Path) -> None:
    """Write the report of an evaluation, and that of the result whose folder it lies in; only in the main process."""
    if process_rank():
        return
    write_report(folder)
    if any((folder.parent / name).is_file() for name in SCHEMAS):
        write_report(folder.parent)


def has_foreign_page(folder: Path) -> bool:
    """Return whether a folder holds a report.html that is not ours, which must not be replaced."""
    path = folder / HTML
    return path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace")


def page_of(sources: Sources) -> Page:
    """Return the report of one result."""
    sections, left_out = built(sources, SECTIONS)
    return Page(
        title=overview.title_of(sources),
        label=overview.label_of(sources),
        subtitle=sources.folder.resolve().name,
        verdict=overview.verdict_of(sources),
        cards=overview.cards_of(sources),
        warnings=overview.warnings_of(sources),
        sections=sections,
        left_out=left_out,
    )


def built(sources: Sources, builders: dict[str, Builder]) -> tuple[list[Section], list[str]]:
    """Return the sections that can be made, and a sentence for each that cannot."""
    sections, left_out = [], []
    for title, build in builders.items():
        try:
            sections.append(build(sources))
        except LeftOut as reason:
            left_out.append(f"{title}: {reason}.")
    return sections, left_out


def write_page(page: Page, folder: Path) -> None:
    """Write a page in both formats."""
    write_atomically(folder / HTML, as_html(page))
    write_atomically(folder / MARKDOWN, as_markdown(page))


def as_html(page: Page) -> str:
    """Return the page as one HTML document; everything in it is escaped but our own templates."""
    return ENVIRONMENT.get_template("page.html.j2").render(page=page, mark=MARK)


def as_markdown(page: Page) -> str:
    """Return the page as Markdown, figures as tables of their numbers."""
    environment = Environment(  # escaped by the filters below: HTML's escapes would be visible in code blocks
        loader=PackageLoader("hgsp.report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"escaped": escaped, "fenced": fenced, "row": row}
    text = environment.get_template("page.md.j2").render(page=page)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def escaped(text: str) -> str:
    """Escape what Markdown, or HTML inside it, would read as markup; the text becomes one line."""
    return " ".join(_SPECIAL.sub(r"\\\1", text).split())


def fenced(text: str) -> str:
    """Return a code block whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def row(cells: Sequence[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(map(escaped, cells))} |"
