"""Tables of docs/SPEED.md: alignment and predicted latency."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from docs_results import RATIOS, Result, Row, Table, number, percent


def alignment(aligned: Result, free: Result) -> Iterable[Row]:
    """Yield perplexity with any width and with multiples of 64, by text and ratio."""
    cells = {(key, row["ratio"]): row["ppl"] for key, found in (("64", aligned), ("1", free)) for row in found["rows"]}
    for text, label in {"wikitext2": "WikiText-2", "c4": "C4"}.items():
        for ratio in (ratio for ratio in RATIOS if ("1", ratio) in cells):
            before, after = (cells["1", ratio][text], cells["64", ratio][text])
            yield label, percent(ratio), number(before), number(after), f"{after / before - 1:+.1%}"


def latency(found: Result) -> Iterable[Row]:
    """Yield the errors of predictions by dtype and workload."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in found["rows"]:
        workload = f"{row['phase']}, batch {row['batch_size']}, context {row['context_length']}"
        groups.setdefault((row["dtype"], workload), []).append(row["error"])
    for (dtype, workload), errors in groups.items():
        sizes = [abs(error) for error in errors]
        within = f"{sum(size <= 0.1 for size in sizes)} of {len(sizes)}"
        yield dtype, workload, f"{statistics.median(sizes):.1%}", f"{max(sizes):.1%}", within


SPEED_TABLES = {
    "alignment": Table(
        ("alignment_smollm2_64", "alignment_smollm2_1"),
        ("text", "of the decoder", "any width", "multiples of 64", "change"),
        alignment,
    ),
    "latency": Table(
        ("latency_smollm2",),
        ("dtype", "workload", "median error", "largest error", "within 10%"),
        latency,
    ),
}
