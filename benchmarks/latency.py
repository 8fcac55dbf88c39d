#!/usr/bin/env python3
"""Predicted beside measured speed-ups of pruned shapes, from a latency table that is measured in the same run.

python benchmarks/latency.py --models HuggingFaceTB/SmolLM2-135M --dtypes bfloat16 float32 --output latency.json

Shapes are random and differ between layers; weights are random too, because times do not depend on them. Models take
turns in random order and share the memory of their weights, and a speed-up is the median of its rounds' ratios, so that
a machine that slows down slows both. CPU seconds of one thread by default.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from machine import provenance

from hgsp.console.exit_codes import quiet_libraries
from hgsp.console.progress import terminal
from hgsp.costs.latency import LatencyTable, Workload
from hgsp.costs.names import CLOCKS, PHASES, PREFILL
from hgsp.costs.passes import TimedPasses, random_model
from hgsp.costs.profile import ProfileOptions, profile
from hgsp.models.dtypes import DTYPE_NAMES
from hgsp.models.geometry import Geometry, LayerShape
from hgsp.models.loading import inspect_model

Shapes = tuple[LayerShape, ...]
HEADING = "| model | dtype | workload | plan | predicted | measured | error |\n|---|---|---|---|---|---|---|"
RATIOS = (0.2, 0.3, 0.5)
#: Timed decoding steps of one turn.
DECODED = 3
#: Values between the starts of two tensors, as allocators align them.
ALIGNMENT = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="hub ids or folders")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=DTYPE_NAMES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", default="cpu", choices=CLOCKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--context_lengths", type=int, nargs="+", default=[512])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(options.threads)
    rows = []
    print(HEADING)
    for model, dtype in product(options.models, options.dtypes):
        new = compare(model, dtype, options)
        print("\n".join(map(line, new)), flush=True)
        rows += new
    within = sum(abs(one["error"]) <= 0.1 for one in rows)
    print(f"\n{within} of {len(rows)} predictions are within 10 % of the measurement")
    if options.output:
        options.output.write_text(json.dumps({**provenance(), "rows": rows}, indent=2) + "\n", encoding="utf-8")


def compare(name: str, dtype: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Profile a model, then measure pruned shapes of it and predict their speed-ups."""
    source = inspect_model(name)
    workloads = ProfileOptions(
        device=options.device,
        dtype=dtype,
        phases=tuple(options.phases),
        batch_sizes=tuple(options.batch_sizes),
        context_lengths=tuple(options.context_lengths),
        repeats=options.repeats,
        clock=options.clock,
    )
    table = profile(name, source.config, source.geometry, workloads, progress=terminal)
    plans = {
        f"{ratio:.0%}{', blocks removed' if emptied else ''}{', odd widths' if multiple == 1 else ''}": random_shapes(
            source.geometry, ratio, multiple, emptied
        )
        for ratio in RATIOS
        for multiple, emptied in ((64, False), (1, False), (64, True))
    }
    models = {
        plan: random_model(source.config, source.geometry, shapes, dtype, options.device)
        for plan, shapes in {"dense": source.geometry.shapes, **plans}.items()
    }
    share_memory(models)
    rows = []
    for workload in workloads.workloads:
        measured = speedups(models, workload, options)
        rows += [
            row(name, dtype, plan, table, source.geometry.shapes, plans[plan], workload, measured) for plan in plans
        ]
    return rows


def row(
    name: str,
    dtype: str,
    plan: str,
    table: LatencyTable,
    dense: Shapes,
    shapes: Shapes,
    workload: Workload,
    measured: Mapping[str, float],
) -> dict[str, Any]:
    """Return predicted and measured speed-up of one plan, and the relative error of the prediction."""
    predicted = table.speedup(dense, shapes, workload)
    return {
        "model": Path(name).name,
        "dtype": dtype,
        **asdict(workload),
        "plan": plan,
        "predicted": predicted,
        "measured": measured[plan],
        "error": predicted / measured[plan] - 1,
    }


def random_shapes(geometry: Geometry, ratio: float, multiple: int, emptied: bool) -> Shapes:
    """Return random shapes that keep about ``1 - ratio`` of the decoder's parameters.

    With ``emptied``, one layer is removed whole, one loses its attention and one its MLP.
    """
    generator = random.Random(round(1000 * ratio) + multiple + emptied)
    keep = [generator.uniform(0.5, 1.5) for _ in geometry.shapes]
    gone = generator.sample(range(geometry.num_layers), 3) if emptied else []

    def shapes(scale: float) -> Shapes:
        return tuple(
            LayerShape(
                0 if index in gone[:2] else max(1, min(shape.num_kv_groups, round(scale * part * shape.num_kv_groups))),
                0
                if index in gone[1:]
                else max(multiple, min(shape.mlp_width, round(scale * part * shape.mlp_width / multiple) * multiple)),
            )
            for index, (shape, part) in enumerate(zip(geometry.shapes, keep, strict=True))
        )

    wanted = (1 - ratio) * geometry.decoder_params
    scales = [step / 200 for step in range(1, 600)]
    return min(map(shapes, scales), key=lambda found: abs(sum(map(geometry.layer_params, found)) - wanted))


def share_memory(models: Mapping[str, Any]) -> None:
    """Let all models have their weights in the memory of the dense one, each spread over all of it.

    Identical models differ by up to 16 % in where their weights are in memory alone.
    """
    dense = torch.cat([parameter.data.flatten() for parameter in models["dense"].parameters()])
    for model in models.values():
        start, stretch = 0, len(dense) / sum(parameter.numel() for parameter in model.parameters())
        for parameter in model.parameters():
            place = int(start * stretch) // ALIGNMENT * ALIGNMENT
            start += parameter.numel()
            parameter.data = dense[place : place + parameter.numel()].view_as(parameter)


def speedups(models: Mapping[str, Any], workload: Workload, options: argparse.Namespace) -> dict[str, float]:
    """Return how many times as fast as the dense model each model is."""
    passes = {plan: TimedPasses(model, workload, options.clock) for plan, model in models.items()}
    rounds = []
    for _ in range(options.repeats + 1):
        order = random.sample(list(passes), len(passes))
        rounds.append({plan: turn(passes[plan], workload) for plan in order})
    return {plan: statistics.median(taken["dense"] / taken[plan] for taken in rounds[1:]) for plan in passes}


def turn(passes: TimedPasses, workload: Workload) -> float:
    """Return the seconds of a pass; of a step amid decoding, after which the caches hold what they can of the model."""
    if workload.phase == PREFILL:
        return passes.run()
    return statistics.median([passes.run() for _ in range(DECODED + 1)][1:])


def line(row: Mapping[str, Any]) -> str:
    """Return a row as a line of a Markdown table."""
    workload = Workload(row["phase"], row["batch_size"], row["context_length"])
    numbers = f"{row['predicted']:.2f} | {row['measured']:.2f} | {row['error']:+.1%}"
    return f"| {row['model']} | {row['dtype']} | {workload} | {row['plan']} | {numbers} |"


if __name__ == "__main__":
    main()
