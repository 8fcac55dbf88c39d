"""Write docs/LICENSES.md: packages that hgsp installs, alone or with an extra, and their licences.

The licences are read from the metadata of the installed packages, which must be those of requirements.lock.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "LICENSES.md"
PINNED = re.compile(r"^([\w.-]+)==([\w.!+-]+)", re.MULTILINE)
#: Licences that metadata name in a text of their own -> their SPDX expression.
SPDX = {
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": "BSD",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PSFL": "PSF-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The MIT License (MIT)": "MIT",
}


def main() -> int:
    """Write the page."""
    PAGE.write_text(licenses_page(), encoding="utf-8")
    return 0


def locked_versions() -> dict[str, str]:
    """Return package -> version of requirements.lock, and of torch in the Makefile."""
    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    versions = {canonicalize_name(name): version for name, version in PINNED.findall(lock)}
    torch = re.search(r"^TORCH := torch==(.+)$", makefile, re.MULTILINE)
    assert torch is not None
    return {**versions, "torch": torch[1]}


def licenses_page() -> str:
    """Return the page: hgsp's own dependencies, those of each extra, and those of tests and tools."""
    versions = locked_versions()
    lines = [
        "# Licences of dependencies",
        "",
        "Written by `make docs` from the metadata of the versions in `requirements.lock`. hgsp itself is Apache-2.0 "
        "and contains none of these packages. Builds of torch for GPUs come with libraries under their makers' own "
        "licences. `make sbom` writes the same as a CycloneDX bill of materials.",
    ]
    seen: set[str] = set()
    for title, names in _sections(versions):
        new = sorted(set(names) - seen)
        seen |= set(new)
        rows = [f"| {name} | {versions[name]} | {license_of(name)} |" for name in new]
        if rows:
            lines += ["", f"## {title}", "", "| package | version | licence |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _sections(versions: dict[str, str]) -> Iterator[tuple[str, Iterable[str]]]:
    """Yield a title and the packages that are installed with it, in the order in which they are first named."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield "hgsp", _closure(project["dependencies"], versions)
    for extra, requirements in project["optional-dependencies"].items():
        if extra != "dev":
            yield f"hgsp[{extra}]", _closure(requirements, versions)
    yield "development", versions


def _closure(requirements: Iterable[str], versions: dict[str, str]) -> set[str]:
    """Return the packages of the lock file that these requirements install."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or name not in versions:
            continue
        found.add(name)
        extras = [*requirement.extras, ""]
        needed = [Requirement(text) for text in metadata.requires(name) or []]
        waiting += [
            other
            for other in needed
            if other.marker is None or any(other.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return found


def license_of(name: str) -> str:
    """Return the licence of an installed package: its SPDX expression, else its classifiers, else its own words."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return str(expression)
    classifiers = [text.rpartition(" :: ")[2] for text in about.get_all("Classifier") or [] if "License ::" in text]
    words = (about.get("License") or "").strip()
    named = [words] if words in SPDX.values() or words in SPDX else sorted(set(classifiers))
    named = named or [words.splitlines()[0][:60] if words else "see its files"]
    return " or ".join(SPDX.get(text, text) for text in named)


if __name__ == "__main__":
    sys.exit(main())
