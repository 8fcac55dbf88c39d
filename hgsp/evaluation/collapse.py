"""Collapse: perplexity has grown so much that the model is useless."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hgsp.console.report_schema import AFTER, BEFORE

#: Growth of perplexity beyond which a model has collapsed.
COLLAPSE_FACTOR = 100.0


def has_collapsed(perplexities: Iterable[tuple[float, float]]) -> bool | None:
    """Return whether any (before, after) pair grew by more than ``COLLAPSE_FACTOR``; None without a pair."""
    verdicts = [after > COLLAPSE_FACTOR * before for before, after in perplexities]
    return any(verdicts) if verdicts else None


def before_and_after(evaluation: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return text -> (PPL before, PPL after) for the texts measured at both stages."""
    before, after = evaluation.get(BEFORE, {}), evaluation.get(AFTER, {})
    return {name: (before[name]["ppl"], after[name]["ppl"]) for name in after if name in before}


def collapse_warning() -> str:
    """Return the warning about a collapsed model."""
    return f"COLLAPSED: perplexity grew more than {COLLAPSE_FACTOR:.0f}-fold; prune less, or recover by training"
