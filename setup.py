"""The description on package pages: README.md without links that work in the repository alone."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
#: A Markdown link or image to a file of the repository: ``[text](path)``.
LINK = re.compile(r"(!?)\[([^\]]+)\]\((?![a-z]+:|#)([^)]+)\)")


def description(readme: str, repository: str | None) -> str:
    """Return README.md with absolute links; without a known repository, with the names of the files instead."""

    def link(found: re.Match[str]) -> str:
        image, text, path = found.groups()
        if repository is not None:
            kind = "raw" if image else "blob"
            return f"{image}[{text}]({repository}/{kind}/HEAD/{path})"
        return text if image or path == text else f"{text} ({path})"

    return LINK.sub(link, readme)


def repository_url(pyproject: str) -> str | None:
    """Return ``Repository`` of ``[project.urls]``, None without it."""
    found = re.search(r'^Repository = "(.+?)/?"', pyproject, re.MULTILINE)
    return found and found[1]


if __name__ == "__main__":
    readme, pyproject = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "pyproject.toml"))
    setup(
        long_description=description(readme, repository_url(pyproject)),
        long_description_content_type="text/markdown",
    )
