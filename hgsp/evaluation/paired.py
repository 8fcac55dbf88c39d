"""Standard errors of differences between models that answered the same items.

Models agree on most items, so that these are smaller than the errors of two independent samples would make them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from hgsp.console.report_schema import DENSE
from hgsp.evaluation.results import Metric


def difference_stderrs(tasks: Sequence[Mapping[str, Metric]]) -> dict[str, float]:
    """Return role -> standard error of the difference to the dense model in the mean over tasks, taken as independent.

    Args:
        tasks: role -> accuracy, for each task; a role without the items of every task is left out.
    """
    found = {}
    for role in tasks[0]:
        errors = [paired_stderr(metrics.get(DENSE), metrics[role]) for metrics in tasks] if role != DENSE else [None]
        known = [error for error in errors if error is not None]
        if len(known) == len(errors):
            found[role] = math.hypot(*known) / len(known)
    return found


def paired_stderr(first: Metric | None, second: Metric | None) -> float | None:
    """Return the standard error of the difference of two accuracies over the same items, None if they are not known."""
    if first is None or second is None or not first.correct or not second.correct:
        return None
    if len(first.correct) != len(second.correct) or len(first.correct) < 2:
        return None
    pairs = zip(first.correct, second.correct, strict=True)
    differences = [(new == "1") - (old == "1") for old, new in pairs]
    return statistics.stdev(differences) / math.sqrt(len(differences))
