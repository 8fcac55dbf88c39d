"""The documents of the repository, and what is inside fenced blocks."""

import re

from conftest import REPOSITORY

DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])


def name_of(path):
    return str(path.relative_to(REPOSITORY))


def fenced(path):
    """(language, text) of every fenced block; the language is empty where none is named."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def blocks(path, *languages):
    """The text of fenced blocks in these languages, continued lines joined."""
    return [text.replace("\\\n", " ") for language, text in fenced(path) if language in languages]


def without_blocks(path):
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
