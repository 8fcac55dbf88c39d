"""LAMBADA, OpenAI version: last-word accuracy and perplexity as the lm-eval harness defines them.

The context is the text without its last word, the target a space and that word. ``acc``: greedy decoding yields every
token of the target. ``target_ppl``: exp of the negative mean log-likelihood of whole targets, hence per word and not
comparable with ``token_ppl``.
"""

from __future__ import annotations

from pathlib import Path

from hgsp.data.rows import read_rows
from hgsp.evaluation.metrics.harness import HarnessSpec, LocalFile, Row


def read_lambada(path: Path) -> list[Row]:
    """Read one ``{"text": ...}`` per line, as ``EleutherAI/lambada_openai`` has it."""
    return [{"text": row.text("text")} for row in read_rows(path)]


LAMBADA = HarnessSpec(
    name="lambada_openai",
    folder="lambada",
    split="test",
    files=(LocalFile("lambada/lambada_test.jsonl", read_lambada),),
    metrics={"acc": ("acc", "", True), "perplexity": ("target_ppl", "", False)},
)
