"""Generated pages and parts of pages are up to date, and the API pages build."""

import re
import runpy
import subprocess
import sys

import pytest

from conftest import REPOSITORY
from documents import DOCUMENTS
from hgsp.pipeline.config import PruneConfig
from hgsp.scoring.methods import METHODS

MAKE_DOCS = runpy.run_path(str(REPOSITORY / "scripts" / "make_docs.py"))
PAGES = MAKE_DOCS["pages"]()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_page_is_up_to_date(path):
    assert path.read_text() == PAGES[path], "run `make docs`"


def test_check_reports_stale_pages_and_writes_nothing(tmp_path, monkeypatch, capsys):
    functions = MAKE_DOCS["main"].__globals__
    page, gone = tmp_path / "docs" / "page.md", tmp_path / "docs" / "methods" / "gone.md"
    gone.parent.mkdir(parents=True)
    gone.touch()
    monkeypatch.setitem(functions, "pages", lambda: {page: "text"})
    monkeypatch.setitem(functions, "REPOSITORY", tmp_path)
    monkeypatch.setitem(functions, "DOCS", tmp_path / "docs")
    assert MAKE_DOCS["main"](["--check"]) == 1
    assert gone.exists()
    assert not page.exists()
    assert MAKE_DOCS["main"]([]) == 0
    assert not gone.exists()
    assert page.read_text() == "text"
    capsys.readouterr()
    assert MAKE_DOCS["main"](["--check"]) == 0
    assert not capsys.readouterr().out


def test_every_part_is_shown_and_every_mark_is_closed():
    texts = [path.read_text() for path in DOCUMENTS]
    shown = {name for text in texts for name in re.findall(r"<!-- generated: (\w+) -->", text)}
    assert shown - {"NAME"} == set(MAKE_DOCS["PARTS"])
    for text in texts:
        marks = re.findall(r"^<!-- (generated|end of generated)\b", text, re.MULTILINE)
        assert marks == ["generated", "end of generated"] * (len(marks) // 2)


def test_every_results_file_is_shown():
    shown = {name for path in DOCUMENTS for name in re.findall(r"benchmarks/results/([\w.-]+\.json)", path.read_text())}
    assert shown == {path.name for path in (REPOSITORY / "benchmarks" / "results").glob("*.json")}


def test_every_method_has_a_page_that_describes_it():
    headings = None
    for name, method in METHODS.items():
        read = MAKE_DOCS["read_method"](name)
        assert (read.kind, read.normalization) == (type(method).__name__, method.normalization)
        assert set(read.needs) == method.needs
        headings = headings or list(read.sections)
        assert list(read.sections) == headings


@pytest.mark.parametrize("name", ["reconstruction_llama-3-8b", "reconstruction_llama-3-8b_h100"])
def test_costs_of_recipes_are_those_of_the_recipes_as_they_are(name, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    whole_model = runpy.run_path(str(REPOSITORY / "benchmarks" / "reconstruction.py"))["whole_model"]
    found = MAKE_DOCS["load"](name)
    assert found["whole_model"] == {
        recipe: whole_model(found["model"], found["one_layer"], flags)
        for recipe, flags in PruneConfig.PRESETS["recipe"].items()
    }


@pytest.mark.thorough
def test_api_pages_build_without_warnings(tmp_path):
    script = REPOSITORY / "scripts" / "docs_site.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "hgsp" / "pruning" / "surgery.html").is_file()
