#!/usr/bin/env python3
"""Quality by calibration text: source, sequence length and labels, at the same number of tokens.

One model is scored and reconstructed at one ratio with each text, as by ``--recipe balanced``. Writes JSON; resumable.

    python benchmarks/calibration.py --base_model MODEL --data_dir DATA --evaluate wiki.test.raw c4.jsonl \\
        --ratio 0.3 --limit 150 --output calibration.json
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import provenance
from quality import Bench
from quality_settings import Maker

from hgsp.console.exit_codes import quiet_libraries
from hgsp.evaluation.metrics.zeroshot import ZERO_SHOT
from hgsp.models.half_precision import fp32_matmul_fallback
from hgsp.pipeline.recipes import BALANCED

#: Name -> differences from WikiText-2 and C4 in sequences of 256 tokens.
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
    parser.add_argument("--ratio", type=float, default=0.3, help="fraction of the decoder layers' parameters to remove")
    parser.add_argument("--score_tokens", type=int, default=64 * 256)
    parser.add_argument("--reconstruct_tokens", type=int, default=256 * 256)
    parser.add_argument("--evaluate", nargs="+", default=["wikitext2", "c4"])
    parser.add_argument("--eval_seq_len", type=int, default=1024)
    parser.add_argument("--eval_windows", type=int, default=8)
    parser.add_argument("--limit", type=int, help="items per zero-shot task")
    parser.add_argument("--data_dir", default=os.environ.get("HGSP_DATA_DIR"), help="local texts and tasks")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()
    result: dict[str, Any] = (
        json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {"rows": []}
    )
    done = {row["calibration"] for row in result["rows"]}
    result |= {**provenance(), "base_model": Path(options.base_model).name, "ratio": options.ratio}
    for name in options.calibrations:
        if name not in done:
            result["rows"].append({"calibration": name, **measure(options, name)})
            print(json.dumps(result["rows"][-1]), flush=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return the quality of the model pruned with one calibration."""
    setting = {"calibrate": ["wikitext2", "c4"], "seq_len": 256, "labels": "text", **CALIBRATIONS[name]}
    seq_len, output = setting["seq_len"], options.output
    changes = {
        "calibrate": setting["calibrate"],
        "seq_len": seq_len,
        "tasks": tuple(ZERO_SHOT),
        "mlp_multiple_of": None,
        "seed": 42,
        "nsamples": options.score_tokens // seq_len,
        "reconstruct_nsamples": options.reconstruct_tokens // seq_len,
        "batch_size": max(1, 2048 // seq_len),
        "output": output.with_stem(f"{output.stem}-{list(CALIBRATIONS).index(name)}"),
    }
    bench = Bench(argparse.Namespace(**vars(options) | changes))
    prune = functools.partial(Maker.pruned, bench.maker, recipe=replace(BALANCED, labels=setting["labels"]))
    return bench.measure(prune, options.ratio)


if __name__ == "__main__":
    main()
