"""The table of engines, made of the rules by which ``hgsp doctor`` judges."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from docs_source import table

from hgsp.exports.engines import ENGINES
from hgsp.exports.rules import UNIFORM, Rule
from hgsp.exports.verdict import Engine, Form


def engines(_: Path) -> str:
    """Return one row for each engine and form in which it reads layers of different sizes, else its first form."""
    head = ("engine", "reads", "needs", "`--shapes_for`", "checked with")
    return table(head, (row for engine in ENGINES for row in _rows(engine)))


def _rows(engine: Engine) -> Iterable[tuple[str, ...]]:
    for form in [form for form in engine.forms if UNIFORM not in form.needs] or engine.forms[:1]:
        reads = f"`--to {form.export}`" if form.export else "the folder"
        reads += f", {form.note}" if form.note else ""
        yield engine.name, reads, _needs(form), f"`{engine.preset}`" if engine.preset else "", form.checked


def _needs(form: Form) -> str:
    needs = "; ".join(map(_spoken, form.needs)) or "nothing"
    return f"{needs}. Wants {'; '.join(map(_spoken, form.wants))}: else {form.loss}" if form.wants else needs


def _spoken(rule: Rule) -> str:
    return f"{rule.need} (`{rule.change}`)" if rule.change.startswith("--") else rule.need
