"""Tables of docs/SPEED.md: engines, alignment, predicted latency and plans for a target speed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from docs_results import RATIOS, Result, Row, Table, number, percent

#: Variant of ``benchmarks/speed.py`` -> its words in the table.
VARIANTS = {
    "odd": "any width",
    "aligned": "multiples of 64",
    "uniform": "uniform",
    "uniform-aligned": "uniform, multiples of 64",
}


def speeds(found: Result) -> Iterable[Row]:
    """Yield file size, KV cache and speeds in CPU seconds of every model, engine by engine."""
    for engine, models in found["engines"].items():
        dense = models["dense"]
        for name, model in models.items():
            if name == "dense":
                cells = [f"{1e3 * point['cpu']:.0f} ms" for point in model["points"]]
            else:
                pairs = zip(dense["points"], model["points"], strict=True)
                cells = [f"{before['cpu'] / after['cpu']:.2f}" for before, after in pairs]
            yield engine, _name(name), f"{model['bytes'] / 1e6:.0f} MB", *cells


def _name(model: str) -> str:
    variant, _, ratio = model.rpartition("-")
    return model if not variant else f"{ratio}%, {VARIANTS[variant]}"


def alignment(aligned: Result, free: Result) -> Iterable[Row]:
    """Yield perplexity with any width and with multiples of 64, by text and ratio."""
    cells = {(key, row["ratio"]): row["ppl"] for key, found in (("64", aligned), ("1", free)) for row in found["rows"]}
    for text, label in {"wikitext2": "WikiText-2", "c4": "C4"}.items():
        for ratio in RATIOS:
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
    """Yield size, speed and perplexity of plans for the same predicted speed."""
    for row in found["rows"]:
        setting = row["setting"] + (f" ({row['emptied']} emptied)" if row["emptied"] else "")
        speed = f"{row['predicted']:.2f}", f"{row['measured']:.2f}"
        yield f"{row['target']:g}", setting, percent(row["reached_ratio"]), *speed, number(row["ppl"])


OF_ALL_PARAMETERS = "Fractions are of all parameters, embeddings included."
SPEED_TABLES = {
    "speed": Table(
        ("speed_smollm2",),
        ("engine", "SmolLM2-135M", "weights", "prefill", "prefill, batch 16", "decode", "decode, batch 16"),
        speeds,
        OF_ALL_PARAMETERS,
    ),
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
        OF_ALL_PARAMETERS,
    ),
}
