"""Pages made from docstrings and results are what the script would write now."""

import runpy
from importlib import import_module

import pytest

from conftest import REPOSITORY
from hgsp.scoring.methods import METHODS

MAKE_DOCS = runpy.run_path(str(REPOSITORY / "scripts" / "make_docs.py"))
PAGES = MAKE_DOCS["pages"]()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_page_is_what_the_script_writes(path):
    assert path.read_text() == PAGES[path], "run `make docs`"


def test_check_says_so_and_writes_nothing(tmp_path, monkeypatch, capsys):
    functions = MAKE_DOCS["main"].__globals__
    stale = tmp_path / "docs" / "methods" / "gone.md"
    stale.parent.mkdir(parents=True)
    stale.touch()
    monkeypatch.setitem(functions, "pages", lambda: {tmp_path / "docs" / "API.md": "text"})
    monkeypatch.setitem(functions, "REPOSITORY", tmp_path)
    assert MAKE_DOCS["main"](["--check"]) == 1
    assert stale.exists()
    assert not (tmp_path / "docs" / "API.md").exists()
    assert MAKE_DOCS["main"]([]) == 0
    assert not stale.exists()
    assert (tmp_path / "docs" / "API.md").read_text() == "text"
    capsys.readouterr()
    assert MAKE_DOCS["main"](["--check"]) == 0
    assert not capsys.readouterr().out


def test_every_method_has_a_page_that_says_what_it_is():
    assert set(MAKE_DOCS["METHODS"]) == set(METHODS)
    for name, method in METHODS.items():
        read = MAKE_DOCS["read_method"](name)
        assert (read.kind, read.normalization) == (type(method).__name__, method.normalization)
        assert set(read.needs) == method.needs
        headings = ["What it scores", "Formula and source", "Shapes and sums", "What it needs", "Cost"]
        assert list(read.sections) == [*headings, "When it misleads"]


def test_public_names_can_be_imported_and_are_explained():
    for file, names in MAKE_DOCS["API"].items():
        module = import_module(file.removesuffix(".py").replace("/", "."))
        for name in names:
            assert getattr(module, name).__doc__, f"{file}: {name}"
