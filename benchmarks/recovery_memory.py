#!/usr/bin/env python3
"""Peak memory of LoRA training at the layer shape of LLaMA-3-8B by number of layers, extrapolated to all 32.

Random bfloat16 weights, two optimizer steps with gradient checkpointing, so that adapters, gradients and both AdamW
moments are allocated. Every measurement runs in its own process.

    python benchmarks/recovery_memory.py --layers 1 2 4 --output recovery_memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="LLaMA-3-8B")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--micro_batch_size", type=int, default=4)
    parser.add_argument("--cutoff_len", type=int, default=256)
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

    rows = []
    for layers in options.layers:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", str(layers)]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | TRIM_FREED_MEMORY)
        rows.append(json.loads(run.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        **provenance(),
        "rows": rows,
        "whole_model": whole_model(rows, config_of(options.model).num_hidden_layers),
    }
    print(json.dumps(result["whole_model"]))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def whole_model(rows: list[dict[str, Any]], num_layers: int) -> dict[str, Any]:
    """Extrapolate linearly from the last two measurements."""
    (first, last), *_ = reversed(list(pairwise(rows)))
    added = last["layers"] - first["layers"]
    missing = num_layers - last["layers"]
    whole = {
        name: last[name] + missing * (last[name] - first[name]) / added for name in ("weight_bytes", "extra_bytes")
    }
    return {**whole, "layers": num_layers, "extra_over_weights": whole["extra_bytes"] / whole["weight_bytes"]}


def measure(options: argparse.Namespace, layers: int) -> dict[str, Any]:
    """Train for two steps; ``extra_bytes`` is the peak memory beyond the loaded model."""
    from shapes import config_of
    from transformers import AutoModelForCausalLM

    from hgsp.data.texts import Text
    from hgsp.environment import peak_memory_bytes
    from hgsp.recovery.collator import Collator
    from hgsp.recovery.config import TrainingConfig
    from hgsp.recovery.samples import Sample
    from hgsp.recovery.training import train, trainable
    from hgsp.recovery.training_text import TrainingText

    with torch.device(options.device):
        config = config_of(options.model, num_hidden_layers=layers)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
    random = np.random.default_rng(0)
    ids = random.integers(0, config.vocab_size, (2 * options.micro_batch_size, options.cutoff_len), dtype=np.int32)
    text = TrainingText(tuple(Sample(row, row) for row in ids), (), {}, (Text("random", "train", "random", "", ""),))
    with tempfile.TemporaryDirectory() as folder:
        recovery = TrainingConfig(
            max_steps=2, batch_size=options.micro_batch_size, micro_batch_size=options.micro_batch_size,
            use_gradient_checkpointing=True,
        )  # fmt: skip
        before = resident_bytes(options.device)
        train(trainable(model, recovery), text, recovery, Collator(0, packed=False), options.device, Path(folder))
        peak = peak_memory_bytes(options.device)
    return {
        "layers": layers,
        "tokens_at_once": options.micro_batch_size * options.cutoff_len,
        "weight_bytes": weight_bytes,
        "loaded_bytes": before,
        "peak_bytes": peak,
        "extra_bytes": peak - before,
    }


def resident_bytes(device: str) -> int:
    """Return the memory this process holds now: allocated on the GPU, else resident (Linux)."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024


if __name__ == "__main__":
    main()
