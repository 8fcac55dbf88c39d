"""The Chinese documents let a reader do all that the English ones do: same commands, sections, tables and numbers."""

import re
import shlex

import pytest

from conftest import REPOSITORY
from documents import DOCUMENTS, blocks, fenced, name_of, without_blocks

CHINESE = [path for path in DOCUMENTS if path.name.endswith(".zh.md")]
PAGES = {"README", "USAGE", "docs/FINETUNING", "docs/MULTI_MODEL_GUIDE", "docs/SERVING"}
CODE = re.compile(r"`([^`]+)`")
#: A word in lower case that is a whole cell, or two in a row: English prose, not a name or a version.
PROSE = re.compile(r"^[a-z]{2,}$|\b[a-z]{2,},? [a-z]{2,}\b")
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def english(path):
    return path.with_name(path.name.replace(".zh.md", ".md"))


def commands(path):
    lines = [line for text in blocks(path, "bash") for line in text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def levels(path):
    return [len(marks) for marks in re.findall(r"^(#+) ", without_blocks(path), re.MULTILINE)]


def sections(path):
    """The text below each heading, blocks left out."""
    return re.split(r"^#+ .*$", without_blocks(path), flags=re.MULTILINE)


def rows(path):
    return re.findall(r"^\|(.*)\|$", without_blocks(path), re.MULTILINE)


def tables(path):
    """Numbers and code of every row of every table, row by row, with the number of cells."""
    return [(row.count("|"), NUMBER.findall(CODE.sub("", row)), CODE.findall(row)) for row in rows(path)]


def untranslated(path):
    """Cells of tables with English prose."""
    cells = [cell.strip() for row in rows(path) for cell in CODE.sub("", row).split("|")]
    return [cell for cell in cells if PROSE.search(cell)]


def test_these_pages_are_there_in_chinese():
    assert {name_of(path) for path in CHINESE} == {f"{page}.zh.md" for page in PAGES}


@pytest.mark.parametrize("path", CHINESE, ids=name_of)
class TestTranslation:
    def test_code_is_the_same(self, path):
        assert commands(path) == commands(english(path))
        assert blocks(path, "python", "yaml") == blocks(english(path), "python", "yaml")
        assert [language for language, _ in fenced(path)] == [language for language, _ in fenced(english(path))]

    def test_sections_are_the_same(self, path):
        assert levels(path) == levels(english(path))

    def test_tables_have_the_same_numbers_and_names(self, path):
        assert tables(path) == tables(english(path))

    def test_tables_have_no_english_prose(self, path):
        """A row that is new in a generated table needs its words in scripts/docs_chinese.py."""
        assert untranslated(path) == []

    def test_generated_parts_are_the_same(self, path):
        generated = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
        assert generated.findall(path.read_text()) == generated.findall(english(path).read_text())

    def test_links_go_to_chinese_pages_where_they_exist(self, path):
        targets = re.findall(r"\]\(([^)#:\s]+\.md)", without_blocks(path))
        targets.remove(english(path).name)  # the language link at the top
        in_english = [name for name in targets if (path.parent / name).resolve().with_suffix(".zh.md") in CHINESE]
        assert in_english == []

    def test_prose_names_the_same_flags_fields_and_messages(self, path):
        """Section by section; the order of words in a sentence is the language's own."""
        for chinese, original in zip(sections(path), sections(english(path)), strict=True):
            assert set(CODE.findall(chinese)) == set(CODE.findall(original))
            assert chinese.count("](") == original.count("](")

    def test_each_links_to_the_other_at_the_top(self, path):
        assert f"({path.name})" in english(path).read_text()[:200]
        assert f"({english(path).name})" in path.read_text()[:200]


def test_english_words_in_a_table_would_be_noticed(tmp_path):
    page = tmp_path / "page.zh.md"
    page.write_text("| 引擎 | `the folder`，CPU |\n| seconds | mlx-lm 0.32 |\n| 目录 | each further layer |\n")
    assert untranslated(page) == ["seconds", "each further layer"]


@pytest.mark.parametrize("change", ["| 1.21 |", "--temperature 0.0 --device", "## "])
def test_a_difference_would_be_noticed(change, tmp_path):
    original, changed = REPOSITORY / "docs" / "MULTI_MODEL_GUIDE.md", tmp_path / "guide.md"
    text = original.read_text()
    assert change in text
    changed.write_text(text.replace(change, change.replace("1.21", "1.22").replace("0.0", "1.0").replace("##", "#"), 1))
    differs = [compare(changed) != compare(original) for compare in (commands, levels, tables)]
    assert differs.count(True) == 1
