"""Proposals for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> list[str]:
    """Return the known name closest to ``word``, else those of which it is a whole part; empty if nothing is close.

    ``method`` is far from ``importance_method`` by its letters, but is one of its parts.
    """
    names = list(known)
    close = difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.6)
    return close or [name for name in names if word.lower() in name.split("_")][:3]


def did_you_mean(word: str, known: Iterable[str], otherwise: str, prefix: str = "") -> str:
    """Return a question that proposes the nearest names, each after ``prefix``; ``otherwise`` if there is none."""
    found = nearest(word, known)
    return f"did you mean {' or '.join(prefix + name for name in found)}?" if found else otherwise
