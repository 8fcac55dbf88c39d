"""Standard errors of differences between models that answered the same items.

Models agree on most items, so that these are smaller than the errors of two independent samples would make them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable


def mean_stderr(pairs: Iterable[tuple[str | None, str | None]]) -> float | None:
    """Return the standard error of a mean over tasks of ``paired_stderr``, None if that of any is not known."""
    errors = [paired_stderr(first, second) for first, second in pairs]
    known = [error for error in errors if error is not None]
    return math.hypot(*known) / len(known) if known and len(known) == len(errors) else None


def paired_stderr(first: str | None, second: str | None) -> float | None:
    """Return the standard error of the difference of two accuracies, None unless they are of the same items.

    Args:
        first, second: "1" or "0" for every item, at least two.
    """
    if not first or not second or len(first) != len(second) or len(first) < 2:
        return None
    differences = [(new == "1") - (old == "1") for old, new in zip(first, second, strict=True)]
    return statistics.stdev(differences) / math.sqrt(len(differences))
