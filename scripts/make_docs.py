#!/usr/bin/env python3
"""Write the generated pages and the generated parts of the others, from docstrings, flags and measured results.

A part is the text between ``<!-- generated: NAME -->`` and ``<!-- end of generated -->``; PARTS has the names.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "benchmarks")]

from docs_engines import engines  # noqa: E402
from docs_families import families  # noqa: E402
from docs_flags import flags_page  # noqa: E402
from docs_methods import method_page, methods_table, read_method  # noqa: E402
from docs_reliability import RELIABILITY_TABLES  # noqa: E402
from docs_results import load  # noqa: E402
from docs_shapes import SHAPE_TABLES  # noqa: E402
from docs_source import REPOSITORY  # noqa: E402
from docs_speed import SPEED_TABLES  # noqa: E402
from docs_tables import TABLES  # noqa: E402
from docs_tree import tree  # noqa: E402

from hgsp.scoring.names import IMPORTANCE_METHODS  # noqa: E402

__all__ = ["load", "read_method"]
DOCS = REPOSITORY / "docs"
PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(?=<!-- end of generated -->)", re.DOTALL)
PARTS: dict[str, Callable[[Path], str]] = {
    **{name: table.text for name, table in {**TABLES, **SHAPE_TABLES, **SPEED_TABLES, **RELIABILITY_TABLES}.items()},
    "engines": engines,
    "families": families,
    "methods": lambda _: methods_table(),
    "tree": lambda _: "\n".join(["```", *tree(), "```"]),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write what is stale; with ``--check`` write nothing and exit with 1 if there is any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page would change")
    options = parser.parse_args(argv)
    expected = pages()
    stale = [path for path, text in expected.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    stale += sorted(set((DOCS / "methods").glob("*.md")) - set(expected))
    for path in stale:
        print(f"{'stale' if options.check else 'written'}: {path.relative_to(REPOSITORY)}")
        if options.check:
            continue
        if path in expected:
            path.parent.mkdir(exist_ok=True)
            path.write_text(expected[path], encoding="utf-8")
        else:
            path.unlink()
    return 1 if stale and options.check else 0


def pages() -> dict[Path, str]:
    """Return the text of every page that is generated or has generated parts."""
    found = {DOCS / "methods" / f"{name}.md": method_page(read_method(name)) for name in IMPORTANCE_METHODS}
    found[DOCS / "FLAGS.md"] = flags_page()
    for path in sorted([*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md")]):
        if path not in found and PART.search(path.read_text(encoding="utf-8")):
            found[path] = with_parts(path)
    return found


def with_parts(page: Path) -> str:
    """Return a page with its generated parts as they are now."""
    return PART.sub(lambda match: f"{match[1]}{PARTS[match[2]](page)}\n", page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
