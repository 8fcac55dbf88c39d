#!/usr/bin/env python3
"""Write docs/methods/, docs/API.md and the tables of docs/QUALITY.md from docstrings and measured results."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "benchmarks")]

from docs_api import API, api_page  # noqa: E402
from docs_methods import METHODS, method_page, methods_index, read_method  # noqa: E402
from docs_source import REPOSITORY, RESULTS  # noqa: E402
from docs_tree import tree  # noqa: E402
from quality_report import tables  # noqa: E402

__all__ = ["API", "METHODS", "read_method"]
#: What stands between two of these comments is written by this script.
TABLES = re.compile(r"(<!-- tables of (\S+\.json) -->\n).*?(?=<!-- end of tables -->)", re.DOTALL)
TREE = re.compile(r"<!-- tree -->\n.*?(?=<!-- end of tree -->)", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 with ``--check`` if a page is not what would be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page would change")
    options = parser.parse_args(argv)
    expected = pages()
    stale = [path for path, text in expected.items() if not path.exists() or path.read_text() != text]
    stale += sorted(set((REPOSITORY / "docs" / "methods").glob("*.md")) - set(expected))
    for path in stale:
        print(f"{'stale' if options.check else 'written'}: {path.relative_to(REPOSITORY)}")
        if options.check:
            continue
        if path in expected:
            path.parent.mkdir(exist_ok=True)
            path.write_text(expected[path])
        else:
            path.unlink()
    return 1 if stale and options.check else 0


def pages() -> dict[Path, str]:
    """Every page that is generated or has generated parts, and its text."""
    docs = REPOSITORY / "docs"
    methods = [read_method(name) for name in METHODS]
    found = {docs / "methods" / f"{method.name}.md": method_page(method) for method in methods}
    found |= {docs / "methods" / "README.md": methods_index(methods), docs / "API.md": api_page()}
    structure = REPOSITORY / "PROJECT_STRUCTURE.md"
    found |= {
        structure: TREE.sub(lambda _: "\n".join(["<!-- tree -->", "```", *tree(), "```", ""]), structure.read_text())
    }
    return found | {docs / "QUALITY.md": with_tables((docs / "QUALITY.md").read_text())}


def with_tables(page: str) -> str:
    """The page with the tables that its comments ask for, from the results as they are now."""

    def written(match: re.Match[str]) -> str:
        result = json.loads((REPOSITORY / RESULTS / match[2]).read_text())
        return match[1] + "\n".join(tables(result)).rstrip() + "\n"

    return TABLES.sub(written, page)


if __name__ == "__main__":
    sys.exit(main())
