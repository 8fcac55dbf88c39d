"""The table of engines, made of the rules by which ``hgsp doctor`` judges."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from docs_source import table

from hgsp.export.engines import ENGINES
from hgsp.export.verdict import Engine, Form


def engines(_: Path) -> str:
    """Return one row for each engine and form."""
    head = ("engine", "reads", "needs", "`--shapes_for`", "checked with")
    return table(head, (row for engine in ENGINES for row in _rows(engine)))


def _rows(engine: Engine) -> Iterable[tuple[str, ...]]:
    for form in engine.forms:
        yield engine.name, _form(form), _needs(form), _code(engine.preset), form.checked


def _form(form: Form) -> str:
    reads = f"`--to {form.export}`" if form.export else "the folder"
    return f"{reads}, {form.note}" if form.note else reads


def _needs(form: Form) -> str:
    needs = [_with_change(rule.need, rule.change) for rule in form.needs]
    wants = [_with_change(rule.need, rule.change) for rule in form.wants]
    if wants:
        needs.append(f"without {' and '.join(wants)}, {form.loss}")
    return "; ".join(needs) or "nothing"


def _with_change(need: str, change: str) -> str:
    return f"{need} ({_code(change)})" if change.startswith("--") else need


def _code(text: str) -> str:
    return f"`{text}`" if text else ""
