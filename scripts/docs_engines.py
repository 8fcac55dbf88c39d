"""The table of engines, made of the rules by which ``hgsp doctor`` judges."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from docs_chinese import is_chinese, said
from docs_source import table

from hgsp.exports.engines import ENGINES
from hgsp.exports.rules import BEYOND_DENSE, UNIFORM, Rule
from hgsp.exports.verdict import Engine, Form


def engines(page: Path) -> str:
    """Return a row for each engine and form in which it reads dense layers of different sizes, else its first form."""
    head = ("engine", "reads", "needs", "`--shapes_for`", "checked with")
    return table([said(cell, page) for cell in head], (row for engine in ENGINES for row in _rows(engine, page)))


def _rows(engine: Engine, page: Path) -> Iterable[tuple[str, ...]]:
    comma = "，" if is_chinese(page) else ", "
    for form in [form for form in engine.forms if not {UNIFORM, BEYOND_DENSE} & {*form.needs}] or engine.forms[:1]:
        reads = f"`--to {form.export}`" if form.export else said("the folder", page)
        reads += f"{comma}{said(form.note_for(), page)}" if form.note else ""
        preset = f"`{engine.preset}`" if engine.preset else ""
        yield said(engine.name, page), reads, _needs(form, page), preset, said(form.checked, page)


def _needs(form: Form, page: Path) -> str:
    semicolon = "；" if is_chinese(page) else "; "
    needs = semicolon.join(_spoken(rule, page) for rule in form.needs) or said("nothing", page)
    if not form.wants:
        return needs
    wants, loss = semicolon.join(_spoken(rule, page) for rule in form.wants), said(form.loss, page)
    return f"{needs}。最好：{wants}；否则{loss}" if is_chinese(page) else f"{needs}. Wants {wants}: else {loss}"


def _spoken(rule: Rule, page: Path) -> str:
    need = said(rule.need, page)
    if not rule.change.startswith("--"):
        return need
    return f"{need}（`{rule.change}`）" if is_chinese(page) else f"{need} (`{rule.change}`)"
