"""The verdict on a pruned model in words: usable as it is, needs recovery, or collapsed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hgsp.evaluation.collapse import COLLAPSE_FACTOR

USABLE, NEEDS_RECOVERY, HAS_COLLAPSED = "usable as it is", "needs recovery", "collapsed"

#: Nats per token that a usable model has lost at most: log(PPL after / PPL before), or KL(dense || pruned). In our
#: measurements both agree to 0.1 up to here. SmolLM2-135M pruned by 20 % of its decoder loses 0.26 and 0.29 with
#: ``--recipe balanced``, and its zero-shot accuracy stays within one standard error (benchmarks/results,
#: quality_smollm2_compared.json).
USABLE_NATS = 0.3
#: Nats per token from which a model has collapsed: perplexity grew by ``COLLAPSE_FACTOR``.
COLLAPSED_NATS = math.log(COLLAPSE_FACTOR)
#: Share of a continuation from which one repeated passage makes it repetitive.
REPETITIVE = 1 / 3
#: A passage three times in a row, or a long one twice.
_REPEATED = re.compile(r"(?=((.{2,}?)\2\2+|(.{20,}?)\3+))", re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """One of the three verdicts, and the findings it rests on."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def judge(
    perplexities: Mapping[str, tuple[float, float]],
    kl: float | None = None,
    samples: tuple[str | None, str | None] = (None, None),
) -> Verdict | None:
    """Judge a model by the largest loss in nats per token and by its sample; None if nothing was measured.

    Args:
        perplexities: text -> perplexity of the dense model and of this one.
        kl: KL(dense || this one) on text, nats per token; None if it was not measured.
        samples: greedy continuations of one prompt by the dense model and by this one.
    """
    losses = {
        f"perplexity x{after / before:.2f} on {text}"
        if after < COLLAPSE_FACTOR * before
        else f"perplexity on {text} more than {COLLAPSE_FACTOR:.0f} times the dense model's": math.log(after / before)
        for text, (before, after) in perplexities.items()
    }
    if kl is not None:
        losses[f"KL {kl:.2f} nats per token"] = kl
    repeats = is_repetitive(samples[1]) and not is_repetitive(samples[0])
    if not losses and not repeats:
        return None
    worst = max(losses.values(), default=0.0)
    findings = [*losses] + ["its greedy sample repeats itself"] * repeats
    name = HAS_COLLAPSED if worst > COLLAPSED_NATS else NEEDS_RECOVERY if worst > USABLE_NATS or repeats else USABLE
    return Verdict(name, "; ".join(findings))


def is_repetitive(text: str | None) -> bool:
    """Return whether passages that follow themselves directly make up at least ``REPETITIVE`` of a text."""
    text = (text or "")[:1000]
    longest = max((len(match[1]) for match in _REPEATED.finditer(text)), default=0)
    return longest > 0 and longest >= REPETITIVE * len(text)
