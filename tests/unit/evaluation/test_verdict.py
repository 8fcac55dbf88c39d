"""Verdicts follow the largest loss and the sample."""

import math

import pytest

from hgsp.evaluation.verdict import (
    COLLAPSED_NATS,
    HAS_COLLAPSED,
    NEEDS_RECOVERY,
    USABLE,
    USABLE_NATS,
    is_repetitive,
    judge,
)

SENTENCES = " it's a delicate balance. We're not just a resource, we're a part of the planet's ecosystem."
LOOP = " it is human-human-human-human-human-human-human-human"


@pytest.mark.parametrize(
    ("nats", "kl", "samples", "name"),
    [
        (0.0, None, (None, None), USABLE),
        (USABLE_NATS - 1e-6, USABLE_NATS, (SENTENCES, SENTENCES), USABLE),
        (USABLE_NATS + 1e-6, None, (None, None), NEEDS_RECOVERY),
        (0.1, USABLE_NATS + 1e-6, (None, None), NEEDS_RECOVERY),
        (0.1, None, (SENTENCES, LOOP), NEEDS_RECOVERY),
        (0.1, None, (LOOP, LOOP), USABLE),
        (COLLAPSED_NATS - 1e-6, None, (SENTENCES, LOOP), NEEDS_RECOVERY),
        (COLLAPSED_NATS + 1e-6, 1.0, (None, None), HAS_COLLAPSED),
        (0.1, COLLAPSED_NATS + 1e-6, (None, None), HAS_COLLAPSED),
        (-0.5, None, (None, None), USABLE),
    ],
)
def test_the_worst_finding_decides(nats, kl, samples, name):
    verdict = judge({"c4": (10.0, 10.0), "wikitext2": (10.0, 10.0 * math.exp(nats))}, kl, samples)
    assert verdict is not None
    assert verdict.name == name


def test_the_reason_names_every_finding():
    verdict = judge({"wikitext2": (10.0, 13.0)}, 0.25, (SENTENCES, LOOP))
    assert str(verdict) == (
        "needs recovery: perplexity x1.30 on wikitext2; KL 0.25 nats per token; its greedy sample repeats itself"
    )


def test_nothing_measured_is_no_verdict():
    assert judge({}) is None
    assert judge({}, samples=(SENTENCES, SENTENCES)) is None


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (None, False),
        ("", False),
        (SENTENCES, False),
        (LOOP, True),
        (" it is a great thing. I'm a great thing. I'm a great thing. I'm a great thing. I'm a great", True),
        (" the sea is blue and deep, the sea is blue and deep, the sea", True),
        (" ha ha ha, the sea is made of water and of salt and of fish and of plants.", False),
        ("\n\n\n\n\n\n", True),
    ],
)
def test_a_text_that_repeats_a_passage_is_repetitive(text, verdict):
    assert is_repetitive(text) is verdict
