"""The table of supported architectures, the one that ``hgsp families`` prints."""

from __future__ import annotations

from pathlib import Path

from docs_source import table

from hgsp.cli.families import HEAD, family_rows


def families(_page: Path) -> str:
    """Return one row for each family."""
    return table(HEAD, ((f"`{name}`", *cells) for name, *cells in family_rows()))
