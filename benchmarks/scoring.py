"""Time and memory of scoring at the shape of a real model, by method and number of layers.

Time is relative to a plain forward (and backward) pass of transformers over the same tokens in the same process, each
the best of several rounds. Memory is the process's peak while scoring, relative to the weights; at full depth, the
growth per layer dominates. Every number of layers runs in its own process, with random weights and real text.

    python benchmarks/scoring.py --layers 2 4 8 --output scoring.json
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

#: Method -> plain pass to compare with.
PLAIN_PASS = {
    "taylor": "forward+backward",
    "taylor_2nd": "forward+backward",
    "fisher": "forward+backward",
    "fisher_token": "forward+backward",
    "wanda": "forward",
    "flap": "forward",
    "magnitude": "forward",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="LLaMA-3-8B")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--methods", nargs="+", default=list(PLAIN_PASS))
    parser.add_argument("--nsamples", type=int, default=4)
    parser.add_argument("--seq_len", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    parser.add_argument(
        "--one", type=int, metavar="LAYERS", help="measure LAYERS layers in this process and print JSON"
    )
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options, options.one)))
        return
    from machine import TRIM_FREED_MEMORY, provenance
    from shapes import config_of

    about = provenance()
    rows: list[dict[str, Any]] = []
    for layers in options.layers:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", str(layers)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | TRIM_FREED_MEMORY)
        rows += json.loads(run.stdout.splitlines()[-1])
        print(run.stdout.splitlines()[-1], flush=True)
    depth = config_of(options.model).num_hidden_layers
    growth = [at_full_depth([row for row in rows if row["method"] == method], depth) for method in options.methods]
    result = {**about, "rows": rows, "at_full_depth": growth}
    print(json.dumps(growth, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(options: argparse.Namespace, layers: int) -> list[dict[str, Any]]:
    """Return one row per method; plain passes and methods alternate."""
    from shapes import byte_tokenizer, config_of
    from transformers import AutoModelForCausalLM

    from hgsp.data.calibration import build_calibration
    from hgsp.data.texts import CALIBRATE, load_text
    from hgsp.models.decoder import Decoder
    from hgsp.scoring.score import ScoringOptions, score_groups

    text = load_text("builtin", CALIBRATE)
    calibration = build_calibration(text, byte_tokenizer(), options.nsamples, options.seq_len, 42)
    with torch.device(options.device):
        config = config_of(options.model, num_hidden_layers=layers)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    input_ids = calibration.input_ids.to(options.device)
    scoring = ScoringOptions(batch_size=options.batch_size)

    def score(method: str) -> None:
        score_groups(Decoder(model), method, calibration, options=scoring)

    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    for _ in range(options.rounds):
        for kind in sorted({PLAIN_PASS[method] for method in options.methods}):
            backward = kind == "forward+backward"
            seconds.setdefault(kind, []).append(
                timed(lambda backward=backward: plain_pass(model, input_ids, options.batch_size, backward))
            )
        for method in options.methods:
            with_peak = PeakMemory(options.device)
            seconds.setdefault(method, []).append(timed(lambda method=method: score(method)))
            peaks[method] = max(peaks.get(method, 0), with_peak.bytes())
    weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
    return [
        {
            "method": method,
            "layers": layers,
            "tokens": calibration.input_ids.numel(),
            "score_s": [round(value, 2) for value in seconds[method]],
            "plain_pass": PLAIN_PASS[method],
            "plain_s": [round(value, 2) for value in seconds[PLAIN_PASS[method]]],
            "time_ratio": round(min(seconds[method]) / min(seconds[PLAIN_PASS[method]]), 3),
            "weight_bytes": weight_bytes,
            "layer_bytes": sum(parameter.nbytes for parameter in model.model.layers[0].parameters()),
            "peak_bytes": peaks[method],
            "peak_over_weights": round(peaks[method] / weight_bytes, 3),
        }
        for method in options.methods
    ]


def plain_pass(model: Any, input_ids: torch.Tensor, batch_size: int, backward: bool) -> None:
    """Run inference, or a training step without optimizer whose gradients are freed as soon as they are computed."""
    model.requires_grad_(backward)
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
        for parameter in model.parameters()
        if backward
    ]
    with torch.set_grad_enabled(backward):
        for batch in input_ids.split(batch_size):
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            if backward:
                loss.backward()
    for handle in handles:
        handle.remove()


def timed(run: Callable[[], None]) -> float:
    """Return the duration of a call in seconds, including queued GPU work."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class PeakMemory:
    """Peak memory since construction: allocated on the GPU, or else the resident set (Linux)."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device.startswith("cuda")
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory cached by the C allocator would count
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the kernel's VmHWM

    def bytes(self) -> int:
        """Return the peak so far."""
        if self._on_gpu:
            return torch.cuda.max_memory_allocated()
        (line,) = [
            line
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM")
        ]
        return int(line.split()[1]) * 1024


def at_full_depth(rows: list[dict[str, Any]], depth: int) -> dict[str, Any]:
    """Extrapolate to the full model, linearly from the smallest and the largest measured."""
    first, last = rows[0], rows[-1]
    if first is last:
        return {"method": last["method"]}

    def slope(key: str) -> float:
        return (min(last[key]) - min(first[key])) / (last["layers"] - first["layers"])

    per_layer = (last["peak_bytes"] - first["peak_bytes"]) / (last["layers"] - first["layers"])
    more = depth - last["layers"]
    weight_bytes = last["weight_bytes"] + more * last["layer_bytes"]
    return {
        "method": last["method"],
        "time_ratio_of_a_further_layer": round(slope("score_s") / slope("plain_s"), 3),
        "peak_per_layer_over_layer_bytes": round(per_layer / last["layer_bytes"], 3),
        "layers": depth,
        "weight_bytes": weight_bytes,
        "extrapolated_peak_bytes": round(last["peak_bytes"] + more * per_layer),
        "extrapolated_peak_over_weights": round((last["peak_bytes"] + more * per_layer) / weight_bytes, 3),
    }


if __name__ == "__main__":
    main()
