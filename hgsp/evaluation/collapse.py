"""Collapse: a perplexity so far above the dense model's that the pruned model is of no use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hgsp.console.report_schema import AFTER, BEFORE

#: A pruned model whose perplexity is more than this many times the dense one's has collapsed.
COLLAPSE_FACTOR = 100.0


def has_collapsed(perplexities: Iterable[tuple[float, float]]) -> bool | None:
    """Return whether any (dense, pruned) pair grew by more than ``COLLAPSE_FACTOR``; None without a pair."""
    verdicts = [pruned > COLLAPSE_FACTOR * dense for dense, pruned in perplexities]
    return any(verdicts) if verdicts else None


def before_and_after(evaluation: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Return text -> (PPL before, PPL after) for the texts that a report has at both stages."""
    before, after = evaluation.get(BEFORE, {}), evaluation.get(AFTER, {})
    return {name: (before[name]["ppl"], after[name]["ppl"]) for name in after if name in before}
