#!/usr/bin/env python3
"""Build the API site from docstrings with pdoc, into site/ or the folder given. Any warning fails the build."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pdoc

import hgsp

REPOSITORY = Path(__file__).resolve().parent.parent
#: Travels in checkpoints; transformers generates signatures there that pdoc cannot resolve.
LEFT_OUT = "hgsp.models.modeling_hgsp"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the site.

    Raises:
        Warning: pdoc cannot resolve a name or an annotation.
    """
    (folder,) = (sys.argv[1:] if argv is None else argv) or [REPOSITORY / "site"]
    build(Path(folder))
    return 0


def build(folder: Path) -> None:
    """Render every module of the package."""
    faces = list(getattr(hgsp, "__all__", ()))
    for name in faces:
        setattr(hgsp, name, getattr(hgsp, name))  # pdoc reads the module's dictionary: resolve the lazy names
    hgsp.__all__ = [
        *faces,
        *(module.name for module in pkgutil.iter_modules(hgsp.__path__)),
    ]  # the front page lists all
    for module in pkgutil.walk_packages(hgsp.__path__, "hgsp."):
        importlib.import_module(module.name)  # other libraries may warn as they are imported
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # a TypedDict does not keep the class that it has a key from
        warnings.filterwarnings("ignore", "Cannot determine where hgsp.console.report_files")
        pdoc.pdoc("hgsp", f"!{LEFT_OUT}", output_directory=folder)


if __name__ == "__main__":
    sys.exit(main())
