#!/usr/bin/env python3
"""What the calibration text does to quality: source, length of sequences, labels. The same number of tokens each.

Every text scores and reconstructs one model at one ratio, as ``--recipe balanced`` does. JSON, resumable.

    python benchmarks/calibration.py --base_model MODEL --data_dir DATA --evaluate wiki.test.raw c4.jsonl \\
        --ratio 0.3 --limit 150 --output calibration.json
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from pathlib import Path
from typing import Any

from machine import provenance
from quality import Bench

from hgsp.console.exit_codes import quiet_libraries
from hgsp.evaluation.metrics.zeroshot import ZERO_SHOT
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.pipeline.config import PruneConfig

#: Name -> what differs from WikiText-2 and C4 in sequences of 256 tokens.
CALIBRATIONS: dict[str, dict[str, Any]] = {
    "WikiText-2": {"calibrate": ["wikitext2"]},
    "C4": {"calibrate": ["c4"]},
    "both": {},
    "both, sequences of 1024 tokens": {"seq_len": 1024},
    "both, scored on tokens drawn from the model": {"labels": "model"},
}


@fp32_matmul_fallback()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True)
    parser.add_argument("--calibrations", nargs="+", choices=CALIBRATIONS, default=list(CALIBRATIONS))
    parser.add_argument("--ratio", type=float, default=0.3, help="of the decoder layers")
    parser.add_argument("--score_tokens", type=int, default=64 * 256)
    parser.add_argument("--reconstruct_tokens", type=int, default=256 * 256)
    parser.add_argument("--evaluate", nargs="+", default=["wikitext2", "c4"])
    parser.add_argument("--eval_seq_len", type=int, default=1024)
    parser.add_argument("--eval_windows", type=int, default=8)
    parser.add_argument("--limit", type=int, help="items of each zero-shot task")
    parser.add_argument("--data_dir", default=os.environ.get("HGSP_DATA_DIR"), help="local texts and tasks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()
    result: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {"rows": []}
    done = {row["calibration"] for row in result["rows"]}
    result |= {**provenance(), "base_model": Path(options.base_model).name, "ratio": options.ratio}
    for name in options.calibrations:
        if name not in done:
            result["rows"].append({"calibration": name, **measure(options, name)})
            print(json.dumps(result["rows"][-1]), flush=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n")


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Quality of the model that one calibration makes."""
    asked = {"calibrate": ["wikitext2", "c4"], "seq_len": 256, "labels": "text", **CALIBRATIONS[name]}
    settings = copy.copy(options)
    settings.calibrate, settings.seq_len, settings.tasks = asked["calibrate"], asked["seq_len"], tuple(ZERO_SHOT)
    settings.nsamples = options.score_tokens // settings.seq_len
    settings.reconstruct_nsamples = options.reconstruct_tokens // settings.seq_len
    settings.batch_size = max(1, 2048 // settings.seq_len)
    settings.output = options.output.with_stem(f"{options.output.stem}-{list(CALIBRATIONS).index(name)}")
    bench = Bench(settings)
    maker = bench.maker

    def make(budget: int) -> Any:
        recipe = PruneConfig.RECIPES["balanced"]
        how = {"labels": asked["labels"], "depth_slope": recipe["depth_slope"]}
        plan = maker.plan(recipe["importance_method"], budget, **how)
        return maker.reconstructed(maker.dense(), plan)

    return bench.measure(make, options.ratio)


if __name__ == "__main__":
    main()
