#!/usr/bin/env python3
"""Time and memory of scoring at the layer shape of LLaMA-3-8B, per method and number of layers.

Time is a ratio to a plain forward (and backward) pass of transformers over the same tokens in the same process, memory
to the bytes of the weights. Every measurement runs in a process of its own; random weights, real text.

    python benchmarks/scoring.py --layers 2 4 8 --output scoring.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

METHODS = ("taylor", "taylor_2nd", "fisher", "wanda", "flap", "magnitude")
FORWARD_ONLY = ("wanda", "flap")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="LLaMA-3-8B")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--nsamples", type=int, default=16)
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "LAYERS"), help="measure this here and print JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options, options.one[0], int(options.one[1]))))
        return
    from machine import provenance

    rows = []
    for layers in options.layers:
        for method in options.methods:
            command = [sys.executable, __file__, *sys.argv[1:], "--one", method, str(layers)]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(run.stdout.splitlines()[-1]))
            print(json.dumps(rows[-1]), flush=True)
    result = {**provenance(), "rows": rows}
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


def measure(options: argparse.Namespace, method: str, layers: int) -> dict[str, Any]:
    """Score first, so that the peak is scoring's own; then run the plain passes for the time."""
    from shapes import byte_tokenizer, config_of
    from transformers import AutoModelForCausalLM

    from hgsp.calibration import build_calibration
    from hgsp.data import CALIBRATE, load_text
    from hgsp.layerwise import Decoder
    from hgsp.report import peak_memory_bytes
    from hgsp.scoring import ScoringOptions, score_groups

    text = load_text("builtin", CALIBRATE)
    calibration = build_calibration(text, byte_tokenizer(), options.nsamples, options.seq_len, 42)
    with torch.device(options.device):
        config = config_of(options.model, num_hidden_layers=layers)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
    before = peak_memory_bytes(options.device)
    scoring = ScoringOptions(batch_size=options.batch_size)
    start = time.perf_counter()
    score_groups(Decoder(model), method, calibration, options=scoring)
    score_s = time.perf_counter() - start
    peak = peak_memory_bytes(options.device)
    backward = method not in (*FORWARD_ONLY, "magnitude")
    start = time.perf_counter()
    plain_pass(model, calibration.input_ids.to(options.device), options.batch_size, backward)
    plain_s = time.perf_counter() - start
    return {
        "method": method,
        "layers": layers,
        "tokens": calibration.input_ids.numel(),
        "weight_bytes": weight_bytes,
        "peak_bytes": peak,
        "peak_over_loaded": round(peak / before, 3),
        "score_s": round(score_s, 2),
        "plain_pass": "forward+backward" if backward else "forward",
        "plain_s": round(plain_s, 2),
        "time_ratio": round(score_s / plain_s, 3),
    }


def plain_pass(model: Any, input_ids: torch.Tensor, batch_size: int, backward: bool) -> None:
    """What a training step without an optimiser costs, or inference."""
    model.requires_grad_(backward)
    with torch.set_grad_enabled(backward):
        for batch in input_ids.split(batch_size):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            if backward:
                loss.backward()


if __name__ == "__main__":
    main()
