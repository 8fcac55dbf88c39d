"""The Chinese documents let a reader do all that the English ones do: same commands, sections, tables and numbers."""

import re
import shlex

import pytest

from conftest import REPOSITORY
from documents import DOCUMENTS, blocks, fenced, name_of, without_blocks

CHINESE = [path for path in DOCUMENTS if path.name.endswith(".zh.md")]
CODE = re.compile(r"`([^`]+)`")
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


def tables(path):
    """Numbers and code of every row of every table, row by row, with the number of cells."""
    rows = re.findall(r"^\|(.*)\|$", without_blocks(path), re.MULTILINE)
    return [(row.count("|"), NUMBER.findall(CODE.sub("", row)), CODE.findall(row)) for row in rows]


def test_readme_and_guide_are_there_in_chinese():
    assert {name_of(path) for path in CHINESE} == {"README.zh.md", "docs/MULTI_MODEL_GUIDE.zh.md"}


@pytest.mark.parametrize("path", CHINESE, ids=name_of)
class TestTranslation:
    def test_commands_and_python_are_the_same(self, path):
        assert commands(path) == commands(english(path))
        assert blocks(path, "python") == blocks(english(path), "python")
        assert [language for language, _ in fenced(path)] == [language for language, _ in fenced(english(path))]

    def test_sections_are_the_same(self, path):
        assert levels(path) == levels(english(path))

    def test_tables_have_the_same_numbers_and_names(self, path):
        assert tables(path) == tables(english(path))

    def test_prose_names_the_same_flags_fields_and_messages(self, path):
        """Section by section; the order of words in a sentence is the language's own."""
        for chinese, original in zip(sections(path), sections(english(path)), strict=True):
            assert set(CODE.findall(chinese)) == set(CODE.findall(original))
            assert chinese.count("](") == original.count("](")

    def test_each_links_to_the_other_at_the_top(self, path):
        assert f"({path.name})" in english(path).read_text()[:200]
        assert f"({english(path).name})" in path.read_text()[:200]


@pytest.mark.parametrize("change", ["| 1.21 |", "--temperature 0.0 --device", "## "])
def test_a_difference_would_be_noticed(change, tmp_path):
    original, changed = REPOSITORY / "docs" / "MULTI_MODEL_GUIDE.md", tmp_path / "guide.md"
    text = original.read_text()
    assert change in text
    changed.write_text(text.replace(change, change.replace("1.21", "1.22").replace("0.0", "1.0").replace("##", "#"), 1))
    differs = [compare(changed) != compare(original) for compare in (commands, levels, tables)]
    assert differs.count(True) == 1
