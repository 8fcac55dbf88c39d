"""Tree of PROJECT_STRUCTURE.md: every module with the first line of its docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from docs_source import REPOSITORY

ROOTS = ("hgsp", "evaluation", "examples", "scripts", "benchmarks")
#: Column at which descriptions begin.
COLUMN = 29


def tree() -> list[str]:
    """Return the lines of the tree, packages before their modules, scripts of the root first."""
    lines = [_line(path.name, _first_line(path), 0) for path in sorted(REPOSITORY.glob("*.py"))]
    for folder in filter(Path.is_dir, (REPOSITORY / root for root in ROOTS)):
        lines += ["", *_folder(folder, 0)]
    return lines


def _folder(folder: Path, depth: int) -> Iterator[str]:
    package = folder / "__init__.py"
    yield _line(f"{folder.name}/", _first_line(package) if package.exists() else "", depth)
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and any(path.glob("*.py")):
            yield from _folder(path, depth + 1)
        elif path.suffix in (".py", ".sh") and path != package:
            yield _line(path.name, _first_line(path), depth + 1)


def _line(name: str, text: str, depth: int) -> str:
    return f"{'  ' * depth + name:<{COLUMN - 1}} {text}".rstrip()


def _first_line(path: Path) -> str:
    """Return the first sentence of a docstring, or the first comment of a shell script, without its full stop."""
    if path.suffix == ".sh":
        comment = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
        return comment.removeprefix("# ").partition(";")[0]
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).removesuffix(".").replace("``", "")
