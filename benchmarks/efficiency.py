#!/usr/bin/env python3
"""Size, FLOPs, latency and memory of several models side by side, as ratios to the first.

python benchmarks/efficiency.py --models dense=FOLDER p20=FOLDER p50=FOLDER --output efficiency.json
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from machine import provenance

from hgsp.console.exit_codes import quiet_libraries
from hgsp.console.progress import terminal
from hgsp.evaluation.metrics.efficiency import Workload, measure_timings, static_costs
from hgsp.evaluation.models import load_model
from hgsp.evaluation.side_by_side import static_metrics, timing_metrics
from hgsp.models.geometry import geometry_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--prompt_len", type=int, default=128)
    parser.add_argument("--decode_len", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    quiet_libraries()
    if options.threads:
        torch.set_num_threads(options.threads)

    paths = dict(item.split("=", 1) for item in options.models)
    models = {name: load_model(path, options.dtype, options.device) for name, path in paths.items()}
    workload = Workload(options.prompt_len, options.decode_len, options.repeats, tuple(options.batch_sizes))
    timings = measure_timings(models, workload, terminal)
    rows = {}
    for name, model in models.items():
        metrics = (*static_metrics(static_costs(model)), *timing_metrics(timings[name], workload))
        rows[name] = {metric.name: metric.value for metric in metrics} | {"widths": widths(model)}
    base = next(iter(rows.values()))
    ratios = {
        name: {metric: value / base[metric] for metric, value in row.items() if metric != "widths"}
        for name, row in rows.items()
    }
    result = {**provenance(), "workload": asdict(workload), "models": rows, "ratios": ratios}
    print(json.dumps(ratios, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def widths(model: Any) -> dict[str, Any]:
    """Summarise the layers' widths; kernels are fastest at multiples of 16 or 64."""
    mlp = [shape.mlp_width for shape in geometry_of(model).shapes if shape.mlp_width]
    return {
        "mlp_min": min(mlp),
        "mlp_max": max(mlp),
        **{f"mlp_multiples_of_{size}": sum(width % size == 0 for width in mlp) / len(mlp) for size in (8, 16, 64)},
        "kv_groups": sum(shape.num_kv_groups for shape in geometry_of(model).shapes),
    }


if __name__ == "__main__":
    main()
